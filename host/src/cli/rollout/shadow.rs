//! What `tenon shadow` shows of how far answers agree.

use std::fmt::Write as _;

use crate::artifact::registry::printable;
use crate::cli::table::{Table, moment, number};
use crate::control::wire::ShadowStatus;
use crate::rollout::shadow::{Cost, Disagreement, OutputReport, Report};

/// Disagreements that are shown; `--json` has all.
const SHOWN: usize = 5;
/// The most characters of a call.
const CALL_CHARS: usize = 2000;

pub(super) fn text(status: &ShadowStatus) -> String {
    if status.functions.is_empty() {
        return "no call was shadowed\n".to_owned();
    }
    let number = |revision: Option<u64>| revision.map_or("none".to_owned(), |revision| revision.to_string());
    let mut text = format!(
        "revision {} beside revision {}, which is live\n\n{}",
        number(status.candidate),
        number(status.stable),
        agreement(&status.functions)
    );
    let outputs = outputs(&status.functions);
    if !outputs.is_empty() {
        let _ = write!(text, "\n{}", outputs.text());
    }
    let _ = write!(text, "\n{}", costs(&status.functions));
    for report in &status.functions {
        reasons(&mut text, report, "not answered by the candidate", &report.failures);
        reasons(&mut text, report, "not shadowed or not compared", &report.left_out);
        for worst in report.worst.iter().take(SHOWN) {
            disagreement(&mut text, &report.function, worst);
        }
    }
    text
}

fn share(percent: Option<f64>) -> String {
    percent.map(|percent| format!("{percent:.2} %")).unwrap_or_default()
}

fn agreement(reports: &[Report]) -> String {
    let mut table = Table::new(&[
        "function",
        ">compared",
        ">agree",
        ">differ",
        ">NaN or inf",
        ">failed",
        ">replayed",
        ">agrees with itself",
    ]);
    for report in reports {
        let counts = &report.counts;
        table.row(vec![
            report.function.clone(),
            counts.compared.to_string(),
            share(report.agreement),
            counts.mismatched.to_string(),
            counts.non_finite.to_string(),
            counts.failed.to_string(),
            counts.replayed.to_string(),
            share(report.own_agreement),
        ]);
    }
    table.text()
}

fn outputs(reports: &[Report]) -> Table {
    let mut table = Table::new(&[
        "function",
        "output",
        ">compared",
        ">differ",
        ">largest distance",
        ">own",
        ">same top",
        ">own top",
        "compared by",
    ]);
    for report in reports {
        for output in &report.outputs {
            let OutputReport { compared, mismatched, largest, own_largest, .. } = output;
            table.row(vec![
                report.function.clone(),
                output.output.clone(),
                compared.to_string(),
                mismatched.to_string(),
                number(*largest),
                number(*own_largest),
                share(output.same_top),
                share(output.own_same_top),
                output.rule.clone(),
            ]);
        }
    }
    table
}

fn costs(reports: &[Report]) -> String {
    let mut table = Table::new(&[
        "function",
        "revision",
        ">calls",
        ">mean ms",
        ">p50 ms",
        ">p99 ms",
        ">inference ms",
        ">memory MiB",
        ">fuel",
    ]);
    for report in reports {
        for (which, cost) in [("candidate", &report.candidate), ("live", &report.stable)] {
            let Cost { calls, mean_ms, p50_ms, p99_ms, infer_ms, memory_peak_bytes, mean_fuel } = cost;
            #[expect(clippy::cast_precision_loss, reason = "it is rounded to a tenth")]
            let mib = memory_peak_bytes.map(|bytes| format!("{:.1}", bytes as f64 / f64::from(1 << 20)));
            table.row(vec![
                report.function.clone(),
                which.to_owned(),
                calls.to_string(),
                number(*mean_ms),
                number(*p50_ms),
                number(*p99_ms),
                number(*infer_ms),
                mib.unwrap_or_default(),
                number(*mean_fuel),
            ]);
        }
    }
    table.text()
}

fn reasons(text: &mut String, report: &Report, what: &str, counts: &std::collections::BTreeMap<String, u64>) {
    if counts.is_empty() {
        return;
    }
    let counts: Vec<_> = counts.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    let (function, counts) = (printable(&report.function, 80), printable(&counts.join(", "), 1000));
    let _ = writeln!(text, "\n{function}, {what}: {counts}");
}

fn disagreement(text: &mut String, function: &str, worst: &Disagreement) {
    let times = if worst.times > 1 { format!(", {} times", worst.times) } else { String::new() };
    let request = worst.request_id.as_ref().map(|id| format!(", request {}", printable(id, 80)));
    let own = match worst.replay_agreed {
        Some(true) => "; the live revision answers the same twice",
        Some(false) => "; so does the live revision from itself",
        None => "",
    };
    let _ = writeln!(
        text,
        "\n{} at {}{}{times}: {}{own}",
        printable(function, 80),
        moment(worst.time_ms),
        request.unwrap_or_default(),
        printable(&worst.what.join("; "), 1000)
    );
    if let Some(captured) = &worst.request {
        let call = printable(&captured.call.to_string(), CALL_CHARS);
        let cut = if captured.truncated { " (not whole)" } else { "" };
        let _ = writeln!(text, "  call{cut}: {call}");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::rollout::shadow::{Captured, ShadowCounts};

    #[test]
    fn what_was_found_is_shown() {
        let output = OutputReport {
            output: "probabilities".to_owned(),
            rule: "within 1e-5, or 0.1 %".to_owned(),
            compared: 1000,
            mismatched: 12,
            largest: Some(0.25),
            same_top: Some(99.5),
            ..OutputReport::default()
        };
        let worst = Disagreement {
            time_ms: 1_795_338_245_000,
            request_id: Some("r1".to_owned()),
            what: vec!["probabilities[3] is 0.9 and not 0.1".to_owned()],
            times: 2,
            replay_agreed: Some(true),
            request: Some(Captured { call: json!({"inputs": []}), truncated: true }),
        };
        let report = Report {
            function: "digits/digits".to_owned(),
            counts: ShadowCounts { compared: 1000, mismatched: 12, replayed: 100, ..ShadowCounts::default() },
            agreement: Some(98.8),
            own_agreement: Some(100.0),
            outputs: vec![output],
            worst: vec![worst],
            candidate: Cost {
                calls: 1000,
                p99_ms: Some(2.5),
                memory_peak_bytes: Some(3 << 20),
                ..Cost::default()
            },
            stable: Cost { calls: 1000, p99_ms: Some(1.25), ..Cost::default() },
            failures: BTreeMap::new(),
            left_out: BTreeMap::from([("host-busy".to_owned(), 3)]),
        };
        let status = ShadowStatus {
            app: "digits".to_owned(),
            stable: Some(1),
            candidate: Some(2),
            functions: vec![report],
        };
        let expected = "\
revision 2 beside revision 1, which is live

function       compared    agree  differ  NaN or inf  failed  replayed  agrees with itself
digits/digits      1000  98.80 %      12           0       0       100            100.00 %

function       output         compared  differ  largest distance  same top  compared by
digits/digits  probabilities      1000      12              0.25   99.50 %  within 1e-5, or 0.1 %

function       revision   calls  p99 ms  memory MiB
digits/digits  candidate   1000     2.5         3.0
digits/digits  live        1000    1.25

digits/digits, not shadowed or not compared: host-busy 3

digits/digits at 2026-11-22 09:04:05, request r1, 2 times: probabilities[3] is 0.9 and not 0.1; the live revision \
answers the same twice
  call (not whole): {\"inputs\":[]}
";
        assert_eq!(text(&status), expected);
        assert_eq!(text(&ShadowStatus::default()), "no call was shadowed\n");
    }
}
