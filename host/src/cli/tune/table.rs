//! What was measured as tables, and the settings that follow from it.

use std::fmt::Write as _;
use std::time::Duration;

use super::load::{Measured, Settings};
use super::{Report, TuneArgs};
use crate::artifact::manifest::{Component, Source};

fn ms(time: Duration) -> String {
    format!("{:.3}", time.as_secs_f64() * 1e3)
}

/// The report for people, with the settings to paste.
pub(super) fn report(report: &Report, model: &str, component: &Component, args: &TuneArgs) -> String {
    let mut text = format!("\n{} callers, without batching\n", args.callers);
    text += &loads(&report.threads, |settings| settings.threads.to_string(), "threads");
    match &report.batches {
        Ok(points) => {
            text += "\nruns by their rows, alone\n   rows   ms a run     rows/s   gain\n";
            let one = points.first().map_or(1.0, super::Point::rows_per_s);
            for point in points {
                let gain = point.rows_per_s() / one;
                let _ = writeln!(
                    text,
                    "{:>7} {:>10} {:>10.0} {gain:>5.2}x",
                    point.rows,
                    ms(point.run),
                    point.rows_per_s()
                );
            }
        }
        Err(reason) => {
            let _ = writeln!(text, "\nno batching: {reason}");
        }
    }
    if !report.batching.is_empty() {
        let _ = writeln!(
            text,
            "\n{} callers, {} threads, with batching",
            args.callers, report.batching[0].settings.threads
        );
        let name = |settings: Settings| match settings.batching {
            Some(batching) => format!("{} / {}", batching.max_size, batching.max_delay.as_micros()),
            None => String::new(),
        };
        text += &loads(&report.batching, name, "size/us");
    }
    text + recommended(report, model, component, args).as_str()
}

fn loads(measured: &[Measured], name: impl Fn(Settings) -> String, title: &str) -> String {
    let mut text = format!("{title:>10}    calls/s    p50 ms    p99 ms  rows a run\n");
    for one in measured {
        let _ = writeln!(
            text,
            "{:>10} {:>10.0} {:>9} {:>9} {:>11.1}",
            name(one.settings),
            one.per_s,
            ms(one.p50),
            ms(one.p99),
            one.rows
        );
    }
    text
}

fn recommended(report: &Report, model: &str, component: &Component, args: &TuneArgs) -> String {
    let mut text = "\nrecommended\n".to_owned();
    let fits = |one: &&Measured| args.p99_ms.is_none_or(|limit| one.p99.as_secs_f64() * 1e3 <= limit);
    if !report.threads.iter().chain(&report.batching).any(|one| fits(&one)) {
        text += "  # nothing that was tried keeps within the 99th percentile that was asked for\n";
    }
    let Settings { threads, batching } = report.best;
    let path = component.models.get(model).map(|model| model.path.display().to_string()).unwrap_or_default();
    let mut entry = format!("path = {path:?}, concurrency = {threads}");
    match batching {
        Some(batching) => {
            let (size, delay) = (batching.max_size, batching.max_delay.as_micros());
            let _ = write!(entry, ", batching = {{ max_size = {size}, max_delay_us = {delay} }}");
        }
        None => text += "  # no batching: it gains less than 5 % here\n",
    }
    let _ = writeln!(
        text,
        "  # host.toml, which is given with --config\n  [inference]\n  threads = {threads}\n  # spin.toml, in place of what \
         is there of the model\n  [component.{}.tool.tenon]\n  models.{model} = {{ {entry} }}",
        component.id
    );
    if component.source != Source::Model {
        text += "\nOnly the model was measured: the function's own code comes to each call.\n";
    }
    text
}
