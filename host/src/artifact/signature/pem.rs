//! PEM: the blocks of base64 between `-----BEGIN` and `-----END` that keys are kept in.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
const DASHES: &str = "-----";

/// The blocks of a text in their order, each with its label. What is between blocks is left out, as is a block that
/// does not end or is not base64.
pub(super) fn blocks(text: &str) -> Vec<(String, Vec<u8>)> {
    let mut blocks = Vec::new();
    let mut open: Option<(&str, String)> = None;
    for line in text.lines().map(str::trim) {
        let label = |line: &'_ str, before| Some(line.strip_prefix(before)?.strip_suffix(DASHES)?.to_owned());
        if let Some(begun) = line.strip_prefix(BEGIN).and_then(|line| line.strip_suffix(DASHES)) {
            open = Some((begun, String::new()));
        } else if let Some(ended) = label(line, END) {
            if let Some((begun, body)) = open.take().filter(|(begun, _)| *begun == ended) {
                blocks.extend(STANDARD.decode(body).ok().map(|bytes| (begun.to_owned(), bytes)));
            }
        } else if let Some((_, body)) = &mut open {
            body.push_str(line);
        }
    }
    blocks
}

/// One block, in lines of 64 characters.
pub(super) fn block(label: &str, bytes: &[u8]) -> String {
    let body = STANDARD.encode(bytes);
    let mut text = format!("{BEGIN}{label}{DASHES}\n");
    for line in body.as_bytes().chunks(64) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text.push_str(&format!("{END}{label}{DASHES}\n"));
    text
}
