//! The tables of `tenon check`.

use std::fmt::Write as _;

use serde_json::json;

use super::{Row, Size};
use crate::artifact::registry::printable;
use crate::samples::Verdict;

/// How much is shown of what an artifact calls a sample, and of why it did not pass.
const CELL_CHARS: usize = 100;
const REASON_CHARS: usize = 4000;

/// For people: the samples, why some did not pass, and the sizes.
pub(super) fn text(rows: &[Row], sizes: &[Size]) -> String {
    let mut text = String::new();
    if !rows.is_empty() {
        let mut table = vec![
            ["function", "sample", "backend", "result", "took ms", "cpu ms", "fuel", "memory MiB"]
                .map(str::to_owned),
        ];
        table.extend(rows.iter().map(cells));
        text += &aligned(&table, 4);
    }
    for row in rows {
        if let Some(reason) = reason(row) {
            let on = if row.backend.is_empty() { String::new() } else { format!(" on {}", row.backend) };
            let (sample, reason) = (printable(&row.sample, CELL_CHARS), printable(&reason, REASON_CHARS));
            let _ = writeln!(text, "\n{} {sample}{on}: {reason}", row.function);
        }
    }
    let mut table = vec![
        ["function", "backend", "component KiB", "native code KiB", "weights KiB", "graphs KiB"]
            .map(str::to_owned),
    ];
    for size in sizes {
        let kib = |bytes: u64| if bytes == 0 { "-".to_owned() } else { bytes.div_ceil(1024).to_string() };
        table.push([
            size.function.clone(),
            size.backend.clone(),
            kib(size.component),
            kib(size.native_code),
            kib(size.weights),
            kib(size.graphs),
        ]);
    }
    text.push('\n');
    text + aligned(&table, 2).as_str()
}

fn cells(row: &Row) -> [String; 8] {
    let ms = |us: f64| format!("{:.3}", us / 1e3);
    let (took, cpu, fuel, memory) = match &row.outcome {
        Ok(checked) => (
            ms(checked.cost.took_us),
            checked.cost.cpu_us.map_or("-".to_owned(), ms),
            checked.cost.fuel.map_or("-".to_owned(), |fuel| fuel.to_string()),
            mib(checked.cost.memory_bytes),
        ),
        Err(_) => Default::default(),
    };
    [
        row.function.clone(),
        printable(&row.sample, CELL_CHARS),
        row.backend.clone(),
        word(row).to_owned(),
        took,
        cpu,
        fuel,
        memory,
    ]
}

fn mib(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "it is rounded to a tenth")]
    let mib = bytes as f64 / f64::from(1 << 20);
    if bytes == 0 { "-".to_owned() } else { format!("{mib:.1}") }
}

fn word(row: &Row) -> &'static str {
    match &row.outcome {
        Ok(checked) if checked.recorded => "recorded",
        Ok(checked) => match checked.verdict {
            Verdict::Passed(_) => "passed",
            Verdict::Failed(_) => "FAILED",
            Verdict::NothingExpected => "NO RESPONSE",
        },
        Err(_) => "NOT RUN",
    }
}

fn reason(row: &Row) -> Option<String> {
    match &row.outcome {
        Err(reason) => Some(reason.clone()),
        Ok(checked) => match &checked.verdict {
            Verdict::Failed(difference) => Some(difference.clone()),
            Verdict::NothingExpected if !checked.recorded => {
                Some("the sample has no `response`; `--record` writes what was answered".to_owned())
            }
            Verdict::Passed(_) | Verdict::NothingExpected => None,
        },
    }
}

/// Columns from `right` on are numbers.
fn aligned<const N: usize>(table: &[[String; N]], right: usize) -> String {
    let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in table {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ = match column < right {
                true => write!(line, "{cell:<width$}  "),
                false => write!(line, "{cell:>width$}  "),
            };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// For programs.
pub(super) fn json(rows: &[Row], sizes: &[Size]) -> String {
    let row = |row: &Row| {
        let (cost, largest) = match &row.outcome {
            Ok(checked) => (
                Some(&checked.cost),
                match checked.verdict {
                    Verdict::Passed(largest) => Some(largest),
                    Verdict::Failed(_) | Verdict::NothingExpected => None,
                },
            ),
            Err(_) => (None, None),
        };
        json!({
            "function": row.function,
            "sample": row.sample,
            "backend": row.backend,
            "passed": row.passed(),
            "reason": reason(row),
            "largest_distance": largest,
            "cost": cost,
        })
    };
    json!({ "samples": rows.iter().map(row).collect::<Vec<_>>(), "sizes_bytes": sizes }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_artifact_says_does_not_reach_the_terminal_as_it_is() {
        let row = |sample: &str, reason: &str| Row {
            function: "a/b".to_owned(),
            sample: sample.to_owned(),
            backend: String::new(),
            outcome: Err(reason.to_owned()),
        };
        let shown = text(&[row("x\na/b passed", "\u{1b}[2Jwhat\nerror: none"), row("y", "z")], &[]);
        assert!(shown.contains("\na/b x a/b passed: ?[2Jwhat error: none\n"), "{shown}");
        assert!(!shown.contains('\u{1b}'), "{shown}");
    }
}
