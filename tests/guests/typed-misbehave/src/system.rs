//! Time, memory, traps, and what the sandbox shows of the machine.

use std::hint::black_box;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::told;

const MIB: usize = 1 << 20;

pub(crate) fn behave(name: &str, argument: &str) -> Option<String> {
    let number = || argument.parse::<u64>().unwrap_or(64);
    Some(match name {
        "ok" => format!("ok {argument}"),
        "loop" => endless(),
        "recurse" => recurse(0).to_string(),
        "trap" => core::arch::wasm32::unreachable(),
        "panic" => panic!("asked to panic"),
        "exit" => std::process::exit(3),
        "hog" => hog(),
        "stdout-flood" => flood(&mut std::io::stdout(), number()),
        "stderr-flood" => flood(&mut std::io::stderr(), number()),
        "print" => told(writeln!(std::io::stdout(), "{argument}"), |()| "printed".to_owned()),
        "eprint" => told(writeln!(std::io::stderr(), "{argument}"), |()| "printed".to_owned()),
        "sleep" => {
            std::thread::sleep(Duration::from_millis(number()));
            format!("slept {} ms", number())
        }
        "read" => told(std::fs::read(argument), |data| format!("{} bytes", data.len())),
        "write" => told(std::fs::write(argument, b"written by a guest"), |()| "written".to_owned()),
        "list" => told(std::fs::read_dir(argument), |entries| {
            let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
            names.collect::<Vec<_>>().join("\n")
        }),
        "env" => std::env::vars().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join("\n"),
        "args" => std::env::args().collect::<Vec<_>>().join("\n"),
        "clock" => told(SystemTime::now().duration_since(UNIX_EPOCH), |now| now.as_millis().to_string()),
        "connect" => told(std::net::TcpStream::connect(argument), |_| "connected".to_owned()),
        "listen" => told(std::net::TcpListener::bind(argument), |_| "listening".to_owned()),
        _ => return None,
    })
}

fn endless() -> String {
    let mut turns = 0_u64;
    loop {
        turns = black_box(turns.wrapping_add(1));
    }
}

#[expect(unconditional_recursion, reason = "what is asked for")]
fn recurse(depth: u64) -> u64 {
    black_box(recurse(black_box(depth) + 1)) + 1
}

fn hog() -> String {
    let mut held = Vec::new();
    loop {
        held.push(black_box(vec![1_u8; MIB]));
    }
}

fn flood(to: &mut impl Write, mebibytes: u64) -> String {
    let line = [b"flood ".repeat(170), b"\n".to_vec()].concat();
    let lines = mebibytes * MIB as u64 / line.len() as u64;
    let written = (0..lines).take_while(|_| to.write_all(&line).is_ok()).count();
    format!("wrote {written} of {lines} lines of {} bytes", line.len())
}
