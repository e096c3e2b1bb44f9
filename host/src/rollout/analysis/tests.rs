//! Rollouts, simulated by the thousand, and what a host and a person see of them.

mod kinds;
mod simulation;

use super::*;
use crate::telemetry::observations::{Distribution, EMPTY, HASHED, Histogram, Tally, bucket, signed_bucket};
use kinds::{bad_kinds, good_kinds};
use simulation::{End, Kind, Simulated};

const ROLLOUTS: u64 = 1000;
/// Few looks, each at many calls, for the time that the tests take; `benches` looks more often.
const BETWEEN_LOOKS: u64 = 3000;

/// How many of the kind's rollouts ended as they should not, of [`ROLLOUTS`].
fn simulate(kind: &Kind, wrong: fn(&End) -> bool) -> usize {
    let simulated = Simulated::new(kind);
    let settings = AnalysisSettings::default();
    let end = |number| simulated.rollout(&DEFAULT_STEPS, &settings, BETWEEN_LOOKS, number, |_| {});
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64);
    std::thread::scope(|scope| {
        let ends = (0..threads).map(|thread| {
            let mine = (thread..ROLLOUTS).step_by(threads as usize);
            scope.spawn(move || mine.map(end).filter(wrong).count())
        });
        ends.collect::<Vec<_>>().into_iter().map(|ends| ends.join().unwrap()).sum()
    })
}

fn of(kinds: Vec<Kind>, name: &str) -> Kind {
    kinds.into_iter().find(|kind| kind.name == name).unwrap()
}

/// Neither rolled back nor held up for a person.
fn stays(name: &str) {
    let kind = of(good_kinds(), name);
    assert!(!kind.bad);
    let rolled_back = simulate(&kind, |end| matches!(end, End::RolledBack { .. }));
    assert!(rolled_back <= ROLLOUTS as usize / 100, "{name}: {rolled_back} of {ROLLOUTS} rolled back");
}

fn caught(name: &str) {
    let kind = of(bad_kinds(), name);
    assert!(kind.bad);
    let missed = simulate(&kind, |end| !matches!(end, End::RolledBack { .. }));
    assert!(missed <= ROLLOUTS as usize / 100, "{name}: {missed} of {ROLLOUTS} not rolled back");
}

#[test]
fn equal_candidates_stay() {
    stays("equal");
}

#[test]
fn equal_candidates_stay_in_bursts_and_outages() {
    stays("equal, bursts and outages");
}

#[test]
fn equal_candidates_stay_while_weights_change_in_bursts_and_outages() {
    stays("equal, weights that change, bursts and outages");
}

#[test]
fn equal_candidates_stay_with_almost_no_traffic() {
    stays("equal, almost no traffic");
}

#[test]
fn faster_candidates_stay() {
    stays("twice as fast");
}

#[test]
fn candidates_that_are_as_bad_as_is_tolerated_stay() {
    stays("just as bad as is tolerated");
}

#[test]
fn equal_candidates_stay_when_shadowed() {
    stays("equal, shadowed");
}

#[test]
fn slower_candidates_are_caught() {
    caught("2x slower");
}

#[test]
fn candidates_of_which_few_calls_are_slower_are_caught() {
    caught("slowest 1 % 3x slower");
}

#[test]
fn candidates_that_trap_now_and_then_are_caught() {
    caught("traps in 1 of 200");
}

#[test]
fn candidates_that_reach_their_limits_are_caught() {
    caught("limit kills in 1 of 100");
}

#[test]
fn candidates_that_are_wrong_in_one_class_are_caught() {
    caught("wrong in one class of ten");
}

#[test]
fn candidates_that_answer_nan_are_caught() {
    caught("NaN in 1 of 100");
}

#[test]
fn candidates_whose_answers_drift_are_caught() {
    caught("values half a deviation larger");
}

#[test]
fn candidates_that_use_more_memory_are_caught() {
    caught("2x the memory");
}

#[test]
fn candidates_that_turn_bad_late_are_caught() {
    caught("traps in 1 of 50 after 1,000 calls");
}

#[test]
fn candidates_that_answer_shadowed_calls_otherwise_are_caught() {
    caught("answers 1 of 20 otherwise");
}

fn tally(requests: u64, bad: u64) -> Tally {
    let latency = Histogram::from(vec![(bucket(5_000_000), requests - bad)]);
    Tally { requests, success: requests - bad, errors: bad, latency, ..Tally::default() }
}

fn look(analysis: &mut Analysis, stable: Tally, candidate: Tally) -> Vec<Measurement> {
    analysis.look(&BTreeMap::from([("f".to_owned(), Arms { stable, candidate, shadow: None })]))
}

fn analysis(settings: &str) -> Analysis {
    let settings: AnalysisSettings = toml::from_str(settings).unwrap();
    settings.check().unwrap();
    Analysis::new(&settings, &["f".to_owned()])
}

fn measured(measurements: &[Measurement], metric: Metric) -> &Measurement {
    measurements.iter().find(|measurement| measurement.metric == metric.name()).unwrap()
}

#[test]
fn a_candidate_that_always_fails_is_told_by_its_first_calls() {
    let mut analysis = analysis("");
    let measurements = look(&mut analysis, tally(190, 0), tally(10, 10));
    let found = measured(&measurements, Metric::SuccessRate);
    assert_eq!(
        (found.phase.as_str(), found.stable, found.candidate, found.stable_samples, found.candidate_samples),
        ("failed", Some(1.0), Some(0.0), 190, 10)
    );
    assert!(found.evidence > found.needed && found.needed == 1000.0);
    let Judgement::Failed { reason } = analysis.judged() else { panic!("{:?}", analysis.judged()) };
    assert!(reason.starts_with("function `f`: success_rate: 0.0 % against 100.0 %; evidence"), "{reason}");
    // It stays so whatever follows.
    look(&mut analysis, tally(10_000, 0), tally(10_000, 0));
    analysis.next_step();
    assert!(matches!(analysis.judged(), Judgement::Failed { .. }));
}

#[test]
fn a_candidate_is_not_enough_before_there_is_something_to_compare_it_with() {
    let mut analysis = analysis("min_samples = 100\nmin_looks = 1");
    look(&mut analysis, Tally::default(), tally(2000, 2000));
    assert_eq!((analysis.judged(), analysis.candidate_samples()), (Judgement::Going, 2000));
    look(&mut analysis, tally(20, 0), tally(20, 20));
    assert!(matches!(analysis.judged(), Judgement::Failed { .. }));
    let mut analysis = self::analysis("min_samples = 100\nmin_looks = 1");
    look(&mut analysis, tally(9, 0), tally(100, 0));
    assert_eq!(analysis.judged(), Judgement::Going);
    look(&mut analysis, tally(1, 0), tally(0, 0));
    assert_eq!((analysis.judged(), analysis.judged_at(101)), (Judgement::Enough, Judgement::Going));
    analysis.next_step();
    assert_eq!((analysis.judged(), analysis.candidate_samples()), (Judgement::Going, 0));
}

#[test]
fn what_no_block_has_taken_in_is_judged_before_a_step_is_over() {
    for (calls, min_samples) in [(3, 15), (1, 10), (7, 15)] {
        let mut analysis = analysis(&format!("min_samples = {min_samples}"));
        let looks = (1..100).find(|_| {
            look(&mut analysis, tally(calls, 0), tally(calls, calls));
            analysis.judged() != Judgement::Going
        });
        assert!(matches!(analysis.judged(), Judgement::Failed { .. }), "{calls}: {looks:?}");
    }
}

#[test]
fn a_function_that_the_stable_revision_lacks_fails_where_most_of_its_calls_do() {
    let check = |bad: u64, expected: &str| {
        let mut analysis = analysis("min_samples = 100");
        analysis.lacked_by_stable(&["f".to_owned()]);
        look(&mut analysis, Tally::default(), tally(100, bad));
        let judged = format!("{:?}", analysis.judged());
        assert!(judged.contains(expected), "{bad}: {judged}");
    };
    check(0, "Enough");
    check(50, "Enough");
    check(80, "error_rate: 80.0 %, of a function that the stable revision lacks, and 50.0 % is tolerated");
    check(100, "Failed");
    // However often one looks, what is tolerated is rarely found to be too much.
    let mut failed = 0;
    for run in 0..1000u64 {
        let mut analysis = analysis("");
        analysis.lacked_by_stable(&["f".to_owned()]);
        let mut chance = simulation::Chance(run << 32);
        for _ in 0..100 {
            let bad = (0..10).filter(|_| chance.share() < 0.5).count() as u64;
            look(&mut analysis, Tally::default(), tally(10, bad));
        }
        failed += u64::from(matches!(analysis.judged(), Judgement::Failed { .. }));
    }
    assert!(failed <= 10, "{failed} of 1000");
}

#[test]
fn functions_that_take_few_calls_are_not_waited_for_and_unknown_ones_are_left_out() {
    let names = ["often".to_owned(), "rare".to_owned()];
    let mut analysis = Analysis::new(&AnalysisSettings::default(), &names);
    let arms = |requests: u64| Arms { candidate: tally(requests, 0), ..Arms::default() };
    let names = [("often", 1000), ("rare", 100), ("unknown", 1)];
    let measurements =
        analysis.look(&names.into_iter().map(|(name, requests)| (name.to_owned(), arms(requests))).collect());
    assert_eq!(measurements.len(), 2 * Metric::ALL.len());
    assert_eq!((measurements[0].needed, analysis.candidate_samples()), (2000.0, 1000));
    analysis.look(&BTreeMap::from([("rare".to_owned(), arms(100))]));
    assert_eq!(analysis.candidate_samples(), 200);
}

#[test]
fn what_is_doubtful_takes_longer_and_then_a_person() {
    let mut analysis = analysis("min_samples = 100\nmin_looks = 1");
    look(&mut analysis, tally(1800, 3), tally(200, 4));
    let Some(found) = analysis.functions["f"].doubted(&analysis.settings, 1000.0) else { panic!() };
    assert_eq!((found, analysis.judged()), (Metric::SuccessRate, Judgement::Going));
    look(&mut analysis, tally(1800, 3), tally(200, 1));
    assert_eq!(analysis.judged(), Judgement::Going);
    (0..2).for_each(|_| drop(look(&mut analysis, tally(18, 0), tally(2, 0))));
    let Judgement::Inconclusive { reason } = analysis.judged() else { panic!("{:?}", analysis.judged()) };
    assert!(reason.contains("after 404 calls") && reason.contains("success_rate"), "{reason}");
    analysis.next_step();
    assert_eq!(analysis.judged(), Judgement::Going);
}

#[test]
fn times_must_be_worse_again_and_again() {
    let of = |requests: u64, milliseconds: u64| {
        let latency = Histogram::from(vec![(bucket(milliseconds * 1_000_000), requests)]);
        Tally { latency, ..tally(requests, 0) }
    };
    let mut analysis = analysis("min_samples = 10");
    let looks_until = |judged: fn(&Judgement) -> bool, analysis: &mut Analysis, slow: u64| {
        (1..100).find(|_| {
            look(analysis, of(900, 5), of(100, slow));
            judged(&analysis.judged())
        })
    };
    let enough = |judged: &Judgement| *judged == Judgement::Enough;
    assert_eq!(looks_until(enough, &mut analysis, 5), Some(5));
    // Everything at once is slower a hundredfold, but for a moment alone.
    look(&mut analysis, of(900, 5), of(100, 500));
    assert_eq!(looks_until(enough, &mut analysis, 5), Some(1));
    let failed = |judged: &Judgement| matches!(judged, Judgement::Failed { .. });
    let looks = looks_until(failed, &mut analysis, 500).unwrap();
    assert!((6..12).contains(&looks), "{looks}");
}

#[test]
fn what_is_only_shown_decides_nothing_and_costs_the_others_nothing() {
    let mut analysis = analysis(
        "min_samples = 100\nmin_looks = 1\nmetrics.success_rate.dry_run = true\nmetrics.error_rate.compare = false",
    );
    let measurements = look(&mut analysis, tally(1000, 0), tally(100, 100));
    let shown = measured(&measurements, Metric::SuccessRate);
    assert!(shown.dry_run && shown.phase == "failed" && shown.evidence > shown.needed);
    assert_eq!(shown.needed, 800.0);
    assert_eq!(measured(&measurements, Metric::ErrorRate).evidence, 1.0);
    assert_eq!(analysis.judged(), Judgement::Enough);
}

#[test]
fn bounds_are_held_whatever_the_stable_revision_does() {
    let check = |settings: &str, bad: &[u64], expected: &str| {
        let mut analysis = analysis(&format!(
            "min_samples = 100\nmin_looks = 1\nmetrics.error_rate.compare = false\n[metrics.success_rate]\ncompare = false\n{settings}"
        ));
        let mut phase = String::new();
        for bad in bad {
            let measurements = look(&mut analysis, tally(100, 0), tally(100, *bad));
            phase.clone_from(&measured(&measurements, Metric::SuccessRate).phase);
        }
        let judged = match analysis.judged() {
            Judgement::Failed { reason } => format!("failed {phase}: {reason}"),
            Judgement::Inconclusive { reason } => format!("inconclusive {phase}: {reason}"),
            other => format!("{other:?} {phase}"),
        };
        assert!(judged.contains(expected), "{settings} {bad:?}: {judged}");
    };
    check("min = 0.99", &[1], "Enough successful");
    check(
        "min = 0.99",
        &[2],
        "failed failed: function `f`: success_rate is 0.98, beyond its minimum of 0.99",
    );
    check("min = 0.99\nfailure_limit = 1", &[2, 0], "Enough successful");
    check("min = 0.99\nfailure_limit = 1", &[2, 0, 2], "the 2th time");
    check("min = 0.99\nfailure_limit = 1\ndry_run = true", &[9, 9, 9], "Enough failed");
    check("min = 0.99\nfailure_min = 0.9", &[5], "inconclusive inconclusive: ");
    check("min = 0.99\nfailure_min = 0.9\ninconclusive_limit = 1", &[5], "Enough inconclusive");
    check("min = 0.99\nfailure_min = 0.9", &[20], "failed failed");
    check("max = 0.9", &[5], "beyond its maximum of 0.9");
    check("min = 0.99\ncount = 2", &[0], "Going successful");
    check("min = 0.99\ncount = 2", &[0, 0], "Enough successful");
    check("min = 0.99\nsamples = 300", &[50, 0], "Going successful");
    check("min = 0.99\nsamples = 300", &[1, 1, 1], "Enough successful");
}

#[test]
fn what_cannot_be_measured_is_left_to_a_person() {
    let mut analysis = analysis(
        "min_samples = 1\nmin_looks = 1\n[metrics.memory]\nmax = 1e9\ncompare = false\nconsecutive_error_limit = 1",
    );
    look(&mut analysis, tally(10, 0), tally(999, 0));
    assert_eq!(analysis.judged(), Judgement::Going);
    look(&mut analysis, tally(10, 0), tally(1, 0));
    assert_eq!(analysis.judged(), Judgement::Enough);
    look(&mut analysis, tally(10, 0), tally(1000, 0));
    let Judgement::Inconclusive { reason } = analysis.judged() else { panic!("{:?}", analysis.judged()) };
    assert!(reason.contains("memory could not be measured 2 times in a row"), "{reason}");
    analysis.next_step();
    look(&mut analysis, tally(10, 0), tally(1000, 0));
    assert_eq!(analysis.judged(), Judgement::Enough);
}

#[test]
fn steps_wait_for_the_bounds_that_can_be_measured_in_them() {
    let mut analysis = analysis(
        "min_samples = 100\nmin_looks = 1\nmetrics.latency_p99.max = 250.0\nmetrics.shadow_mismatch.max = 0.1",
    );
    let shadow = |compared: u64| {
        let shadow = Some(ShadowCounts { compared, ..ShadowCounts::default() });
        BTreeMap::from([("f".to_owned(), Arms { shadow, ..Arms::default() })])
    };
    analysis.look(&shadow(99));
    assert_eq!(analysis.judged_by_shadow(10), Judgement::Going);
    analysis.look(&shadow(1));
    assert_eq!(analysis.judged_by_shadow(10), Judgement::Enough);
    analysis.next_step();
    // Kept answers have no time.
    let kept = |requests: u64| Tally { latency: Histogram::new(), ..tally(requests, 0) };
    look(&mut analysis, tally(100, 0), kept(100));
    assert_eq!(analysis.judged(), Judgement::Going);
    look(&mut analysis, tally(100, 0), tally(100, 0));
    assert_eq!(analysis.judged(), Judgement::Enough);
}

#[test]
fn bounds_of_functions_that_take_few_calls_are_not_waited_for() {
    let settings = toml::from_str("min_samples = 100\nmin_looks = 1\nmetrics.error_rate.max = 0.1").unwrap();
    let mut analysis = Analysis::new(&settings, &["often".to_owned(), "rare".to_owned()]);
    let arms = |requests: u64| {
        let tally = tally(requests, 0);
        Arms { stable: tally.clone(), candidate: tally, shadow: None }
    };
    let names = [("often", 1000), ("rare", 10)];
    analysis.look(&names.into_iter().map(|(name, requests)| (name.to_owned(), arms(requests))).collect());
    assert_eq!(analysis.judged(), Judgement::Enough);
}

#[test]
fn drift_is_told_by_class_and_value() {
    let of = |classes: &[(u16, u64)], value: f64| {
        let requests = classes.iter().map(|(_, count)| count).sum();
        let values = Histogram::from(vec![(signed_bucket(value), requests)]);
        let classes = classes.iter().copied().collect();
        let output = Distribution { finite: requests, non_finite: 0, classes, values };
        Tally { outputs: BTreeMap::from([("digit".to_owned(), output)]), ..tally(requests, 0) }
    };
    let same = [(3, 500), (5, 500)];
    let check = |stable: Tally, candidate: Tally, expected: &str| {
        let mut analysis = analysis("");
        let measurements = look(&mut analysis, stable, candidate);
        let text = &measured(&measurements, Metric::Drift).text;
        assert!(text.contains(expected), "{text}");
    };
    check(
        of(&same, 2.0),
        of(&[(3, 100), (5, 900)], 2.0),
        "drift: `digit` is 5 in 90.0 % of the candidate's answers and 50.0 % of the stable revision's",
    );
    check(of(&same, 2.0), of(&[(HASHED, 1000)], 2.0), "is one of a group of texts or large numbers");
    check(of(&same, 2.0), of(&[(EMPTY, 1000)], 2.0), "has no elements in 100.0 %");
    check(
        of(&same, 2.0),
        of(&same, -2.0),
        "100.0 % of the candidate's values of `digit` lie below a threshold, and 0.0 %",
    );
    check(of(&same, 2.0), of(&same, 2.05), "evidence that it is worse: 0.6");
}

#[test]
fn every_output_is_watched_however_many_there_are() {
    let texts = |name: &str, first: u16| {
        let classes = (0..50).map(|class| (HASHED + (first + class) % 64, 20)).collect();
        let values = Histogram::from(vec![(signed_bucket(7.0), 1000)]);
        (name.to_owned(), Distribution { finite: 1000, non_finite: 0, classes, values })
    };
    let names: Vec<_> = (0..16u8).map(|place| char::from(b'a' + place).to_string()).collect();
    for outputs in [2, 4, 9, 16] {
        let names = &names[..outputs];
        let of = |last: u64| {
            let mut all: BTreeMap<_, _> = names.iter().map(|name| texts(name, 0)).collect();
            let values = Histogram::from(vec![(signed_bucket(last as f64), 1000)]);
            all.insert(names[outputs - 1].clone(), Distribution { values, ..texts("", 0).1 });
            Tally { outputs: all, ..tally(1000, 0) }
        };
        let mut analysis = analysis("");
        let measurements = look(&mut analysis, of(7), of(30));
        let found = measured(&measurements, Metric::Drift);
        assert!(found.phase == "failed", "{outputs}: {}", found.text);
        let parts = analysis.functions["f"].evidence[&Metric::Drift].parts().count();
        assert!(parts <= 256, "{outputs}: {parts}");
    }
}

#[test]
fn a_class_that_only_a_late_candidate_answers_is_drift() {
    let of = |classes: &[(u16, u64)]| {
        let finite = classes.iter().map(|(_, count)| count).sum();
        let output = Distribution {
            finite,
            non_finite: 0,
            classes: classes.iter().copied().collect(),
            values: Histogram::new(),
        };
        Tally { outputs: BTreeMap::from([("digit".to_owned(), output)]), ..tally(finite, 0) }
    };
    let mut analysis = analysis("");
    // Every look brings a class that was not there before, to both.
    for late in 0..30 {
        let both = of(&[(1, 500), (2, 480), (100 + late, 20)]);
        look(&mut analysis, both.clone(), both);
    }
    assert_eq!(analysis.judged(), Judgement::Enough);
    let failed = (1..10).find(|_| {
        look(&mut analysis, of(&[(1, 100), (2, 100)]), of(&[(1, 90), (2, 90), (777, 20)]));
        matches!(analysis.judged(), Judgement::Failed { .. })
    });
    assert!(failed.is_some_and(|looks| looks <= 2), "{failed:?}");
}

#[test]
fn a_host_that_restarts_goes_on_where_it_was() {
    let kinds = bad_kinds();
    for kind in [&kinds[1], &kinds[8], &kinds[18], &good_kinds()[1]] {
        let simulated = Simulated::new(kind);
        let settings = AnalysisSettings::default();
        let mut sizes = Vec::new();
        let whole = simulated.rollout(&DEFAULT_STEPS, &settings, 500, 7, |_| {});
        let restarted = simulated.rollout(&DEFAULT_STEPS, &settings, 500, 7, |analysis| {
            let kept = serde_json::to_string(analysis).unwrap();
            sizes.push(kept.len());
            let read: Analysis = serde_json::from_str(&kept).unwrap();
            assert_eq!(&read, analysis);
            *analysis = read;
        });
        assert_eq!(whole, restarted);
        let largest = sizes.iter().max().unwrap();
        assert!(*largest < 16_000, "{}: {largest} bytes are kept", kind.name);
    }
}

#[test]
fn counts_that_cannot_be_do_no_harm() {
    let absurd = Tally {
        requests: 3,
        success: u64::MAX,
        errors: u64::MAX,
        traps: u64::MAX,
        latency: Histogram::from(vec![(i16::MAX, u64::MAX), (i16::MIN, u64::MAX)]),
        ..Tally::default()
    };
    let mut analysis = analysis("metrics.error_rate.max = 0.1\nmetrics.latency_p99.max = 5.0");
    for _ in 0..20 {
        for measurement in look(&mut analysis, absurd.clone(), absurd.clone()) {
            assert!(measurement.evidence.is_finite());
        }
        look(&mut analysis, absurd.clone(), tally(100, 1));
    }
    serde_json::from_str::<Analysis>(&serde_json::to_string(&analysis).unwrap()).unwrap();
}

#[test]
fn settings_that_make_no_sense_are_refused_with_what_to_write() {
    let check = |text: &str, expected: &str| {
        let settings = toml::from_str::<AnalysisSettings>(text);
        let wrong = settings.map_err(|error| error.to_string()).and_then(|settings| settings.check());
        match (wrong, expected) {
            (Ok(()), "") => {}
            (Err(wrong), expected) if !expected.is_empty() => assert!(wrong.contains(expected), "{wrong}"),
            (wrong, expected) => panic!("{text}: {wrong:?}, expected {expected:?}"),
        }
    };
    check("", "");
    check("min_samples = 1\n[metrics.latency_p99]\ntolerance = 2.0\nmax = 500.0\nfailure_limit = 3", "");
    check("min_samples = 0", "min_samples must be at least 1");
    check("interval_s = 0.0", "interval_s must be from 0.1");
    check("interval_s = nan", "interval_s must be from 0.1");
    check("false_alarm = 1.0", "false_alarm must be from");
    check("speed = 1", "unknown field `speed`");
    check("metrics.p99.max = 1.0", "unknown variant `p99`, expected one of `success_rate`");
    check("metrics.drift.tolerance = 0.5", "metrics.drift: tolerance must be from 1");
    check("metrics.trap_rate.max = 5.0", "metrics.trap_rate: max must be from 0 to 1");
    check("metrics.latency_p50.min_difference = 0.1", "say `tolerance`");
    check("metrics.trap_rate.failure_max = 0.1", "failure_max needs max");
    check("[metrics.success_rate]\nmin = 0.9\nfailure_min = 0.95", "above min 0.9");
    check("[metrics.error_rate]\nmax = 0.2\nfailure_max = 0.1", "below max 0.2");
    check("[metrics.error_rate]\nmin = 0.2\nmax = 0.1", "min 0.2 is above max 0.1");
    check("metrics.drift = { max = 0.1, compare = false }", "bounds of drift need `compare`");
    check("metrics.drift = { max = 0.1, dry_run = true }", "");
    check("metrics.drift.samples = 0", "samples and count must be at least 1");
    let settings: AnalysisSettings = toml::from_str("metrics.drift.dry_run = true").unwrap();
    let kept = serde_json::to_string(&settings).unwrap();
    assert!(kept.contains(r#""metrics":{"drift":{"dry_run":true}}"#), "{kept}");
    assert_eq!(serde_json::from_str::<AnalysisSettings>(&kept).unwrap(), settings);
}
