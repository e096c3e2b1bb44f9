//! Tests of the machine: the ways of a rollout one by one, and any events in any order.

use super::*;
use crate::rollout::plan::{Pause, ShadowStep, Sticky};
use crate::telemetry::observations::Tally;

const SECOND: u64 = 1000;
const FUNCTION: &str = "classify";

/// A rollout and its clock.
struct Case {
    rollout: Rollout,
    now_ms: u64,
    changes: Vec<Change>,
}

impl Case {
    fn start(plan: Plan) -> Case {
        Case::of(Some(1), plan)
    }

    fn of(stable: Option<u64>, plan: Plan) -> Case {
        let now_ms = 1_700_000_000_000;
        let functions = [FUNCTION.to_owned()];
        let (rollout, changes) = Rollout::start(7, "shop", stable, 2, plan, &functions, now_ms);
        Case { rollout, now_ms, changes }
    }

    /// Lets so many seconds pass, a tick each.
    fn seconds(&mut self, seconds: u64) -> &mut Case {
        for _ in 0..seconds {
            self.now_ms += SECOND;
            self.changes.extend(self.rollout.tick(self.now_ms, None));
        }
        self
    }

    /// Lets both revisions answer so many calls, all of them well.
    fn answers(&mut self, calls: u64) -> &mut Case {
        self.now_ms += SECOND;
        let arms = BTreeMap::from([(FUNCTION.to_owned(), good(calls))]);
        self.changes.extend(self.rollout.tick(self.now_ms, Some(&arms)));
        self
    }

    fn judge(&mut self, judgement: Judgement) -> &mut Case {
        let mut changes = Vec::new();
        self.rollout.judge(judgement, &mut changes);
        self.changes.extend(changes);
        self
    }

    fn does(&mut self, command: impl FnOnce(&mut Rollout, u64) -> Result<Vec<Change>, NotNow>) -> &mut Case {
        let changes = command(&mut self.rollout, self.now_ms).unwrap();
        self.changes.extend(changes);
        self
    }

    fn promote(&mut self) -> &mut Case {
        self.does(|rollout, now_ms| rollout.promote(false, now_ms))
    }

    /// Where it stands, and what has happened since this was asked last.
    #[track_caller]
    fn is(&mut self, phase: Phase, step: usize, weight: u16, events: &[&str]) -> &mut Case {
        let rollout = &self.rollout;
        let reason = &rollout.reason;
        assert_eq!((rollout.phase, rollout.step, rollout.weight), (phase, step, weight), "{reason}");
        let happened: Vec<_> = self.changes.drain(..).map(|change| change.event).collect();
        assert_eq!(happened, events, "{reason}");
        self
    }
}

fn good(calls: u64) -> Arms {
    let tally = Tally { requests: calls, success: calls, ..Tally::default() };
    Arms { stable: tally.clone(), candidate: tally, shadow: None }
}

fn plan(strategy: Strategy, steps: Vec<Step>) -> Plan {
    let mut plan = Plan { steps, ..Plan::of(strategy) };
    plan.analysis.min_looks = 1;
    plan.check().unwrap();
    plan
}

fn wait(duration_s: u64) -> Step {
    Step::Pause(Pause { duration_s: Some(duration_s) })
}

fn analysis(min_samples: u64, timeout_s: u64) -> Step {
    Step::Analysis(AnalysisStep { min_samples: Some(min_samples), timeout_s: Some(timeout_s) })
}

fn shadow(share: u16) -> Step {
    Step::Shadow(ShadowStep { share, min_samples: 10, timeout_s: Some(60) })
}

fn failed() -> Judgement {
    Judgement::Failed { reason: "it traps".to_owned() }
}

fn inconclusive() -> Judgement {
    Judgement::Inconclusive { reason: "nothing could be measured".to_owned() }
}

const ASK: Step = Step::Pause(Pause { duration_s: None });

use Phase::{Aborting, Inconclusive, Paused, Progressing, Promoting, RolledBack, Shadowing, Succeeded};

#[test]
fn all_at_once_is_over_with_the_first_tick() {
    let mut case = Case::start(Plan::of(Strategy::AllAtOnce));
    case.is(Promoting, 0, WHOLE, &["started", "promoting"]);
    case.seconds(1).is(Succeeded, 0, WHOLE, &["promoted"]);
    assert!(case.rollout.is_over() && case.rollout.traffic().candidate);
}

#[test]
fn the_first_revision_of_an_app_takes_all_traffic_whatever_its_plan() {
    let mut case = Case::of(None, Plan::of(Strategy::Manual));
    case.is(Promoting, 3, WHOLE, &["started", "promoting"]);
    case.seconds(1).is(Succeeded, 3, WHOLE, &["promoted"]);
}

#[test]
fn who_goes_back_from_what_has_succeeded_is_told_so_and_on_the_way_forth_too() {
    let (mut rollout, _) = Rollout::start(1, "app", Some(7), 8, Plan::of(Strategy::AllAtOnce), &[], 1);
    rollout.turned(7, "too early", 2);
    assert_eq!(rollout.phase, Phase::Promoting, "it is not over");
    rollout.tick(3, None);
    rollout.turned(8, "it is there", 4);
    assert_eq!((rollout.phase, rollout.weight, rollout.changed_ms), (Phase::Succeeded, WHOLE, 3));
    rollout.turned(7, "back", 5);
    assert_eq!((rollout.phase, rollout.weight, rollout.changed_ms), (Phase::RolledBack, 0, 5));
    assert_eq!((rollout.reason.as_str(), rollout.traffic().candidate), ("back", false));
    rollout.turned(8, "forth", 6);
    assert_eq!((rollout.phase, rollout.weight, rollout.reason.as_str()), (Phase::Succeeded, WHOLE, "forth"));
}

#[test]
fn a_canary_goes_through_its_steps_by_itself() {
    let steps = vec![
        Step::SetWeight(500),
        wait(60),
        Step::SetHeaderRoute(HeaderRoute {
            header: "x-ring".to_owned(),
            value: "1".to_owned(),
            revision: Side::Candidate,
        }),
        Step::SetWeight(2000),
        analysis(100, 600),
    ];
    let mut case = Case::start(plan(Strategy::Canary, steps));
    case.is(Progressing, 1, 500, &["started", "weight", "waiting"]);
    case.seconds(59).is(Progressing, 1, 500, &[]);
    assert!(case.rollout.reason.contains("waits 60 s at 5 %"), "{}", case.rollout.reason);
    case.seconds(1).is(Progressing, 4, 2000, &["header-route", "weight", "waiting"]);
    assert_eq!(case.rollout.traffic().header_routes.len(), 1);
    case.answers(99).is(Progressing, 4, 2000, &[]);
    case.answers(1).is(Promoting, 5, WHOLE, &["passed", "promoting"]);
    assert!(case.rollout.traffic().header_routes.is_empty());
    case.seconds(1).is(Succeeded, 5, WHOLE, &["promoted"]);
    case.seconds(1000).is(Succeeded, 5, WHOLE, &[]);
}

#[test]
fn a_canary_without_traffic_waits_for_a_person_and_is_not_rolled_back() {
    let mut case = Case::start(plan(Strategy::Canary, vec![Step::SetWeight(500), analysis(100, 600)]));
    case.answers(3).seconds(599).is(Inconclusive, 1, 500, &["started", "weight", "waiting", "inconclusive"]);
    assert!(case.rollout.reason.contains("after 600 s the candidate has answered 3 of 100 calls"));
    case.seconds(1000).is(Inconclusive, 1, 500, &[]);
    // Tried again, with time anew.
    case.does(Rollout::resume).is(Progressing, 1, 500, &["resumed", "waiting"]);
    case.answers(100).is(Promoting, 2, WHOLE, &["passed", "promoting"]);
}

#[test]
fn a_canary_that_nothing_can_be_compared_with_waits_for_a_person_who_is_told_why() {
    let mut case = Case::start(plan(Strategy::Canary, vec![Step::SetWeight(500), analysis(100, 600)]));
    case.now_ms += SECOND;
    let alone = Arms { stable: Tally::default(), ..good(200) };
    let arms = BTreeMap::from([(FUNCTION.to_owned(), alone)]);
    case.changes.extend(case.rollout.tick(case.now_ms, Some(&arms)));
    case.seconds(599).is(Inconclusive, 1, 500, &["started", "weight", "waiting", "inconclusive"]);
    let reason = &case.rollout.reason;
    assert!(reason.contains("of `classify`, the stable revision has answered 0 of the 10 calls"), "{reason}");
    // A function that it lacks is not made to wait for it.
    let mut case = Case::start(plan(Strategy::Canary, vec![Step::SetWeight(500), analysis(100, 600)]));
    case.rollout.lacked_by_stable(&[FUNCTION.to_owned()]);
    case.changes.extend(case.rollout.tick(case.now_ms, Some(&arms)));
    case.is(Promoting, 2, WHOLE, &["started", "weight", "waiting", "passed", "promoting"]);
}

#[test]
fn what_is_worse_is_rolled_back_in_any_phase() {
    let steps = vec![shadow(1000), ASK, Step::SetWeight(500), wait(60)];
    let reach: [fn(&mut Case); 5] = [
        |_| {},
        |case| {
            case.does(Rollout::pause);
        },
        |case| {
            case.judge(inconclusive());
        },
        |case| {
            case.promote();
        },
        |case| {
            case.promote().promote();
        },
    ];
    for reach in reach {
        let mut case = Case::start(plan(Strategy::Shadow, steps.clone()));
        reach(&mut case);
        let step = case.rollout.step;
        case.changes.clear();
        case.judge(failed()).is(Aborting, step, 0, &["aborting"]);
        assert_eq!(case.rollout.reason, "it traps");
        let wanted = case.rollout.traffic();
        assert!(!wanted.candidate && wanted.weight == 0 && wanted.shadow_share == 0);
        case.seconds(1).is(RolledBack, step, 0, &["rolled-back"]);
        assert_eq!(case.rollout.reason, "it traps");
    }
}

/// What is counted where the candidate traps in every tenth call.
fn trapping(calls: u64) -> BTreeMap<String, Arms> {
    let mut arms = good(calls);
    arms.candidate.success -= calls / 10;
    arms.candidate.traps += calls / 10;
    BTreeMap::from([(FUNCTION.to_owned(), arms)])
}

#[test]
fn a_candidate_that_traps_is_rolled_back_with_the_numbers_in_the_history() {
    let mut case = Case::start(Plan::of(Strategy::Canary));
    case.changes.clear();
    let changes = case.rollout.tick(case.now_ms + SECOND, Some(&trapping(1000)));
    let decided = changes.iter().find(|change| change.event == "aborting").unwrap();
    assert!(decided.text.contains("no traffic goes to revision 2 any more: function `classify`"));
    let measurements = decided.details["measurements"].as_array().unwrap();
    let failed = measurements.iter().find(|found| found["phase"] == "failed").unwrap();
    assert!(failed["evidence"].as_f64().unwrap() >= failed["needed"].as_f64().unwrap(), "{failed}");
    case.is(Aborting, 1, 0, &[]);
}

#[test]
fn a_candidate_that_always_traps_is_rolled_back_however_few_calls_its_step_takes() {
    let mut plan = plan(Strategy::Canary, vec![Step::SetWeight(5000), analysis(15, 600)]);
    plan.analysis.min_looks = 5;
    let mut case = Case::start(plan);
    case.changes.clear();
    for calls in [3, 3, 3, 3, 3] {
        let mut arms = good(calls);
        arms.candidate = Tally { requests: calls, traps: calls, ..Tally::default() };
        case.now_ms += SECOND;
        let arms = BTreeMap::from([(FUNCTION.to_owned(), arms)]);
        case.changes.extend(case.rollout.tick(case.now_ms, Some(&arms)));
    }
    let measurements = case.changes[0].details["measurements"].as_array().unwrap();
    assert!(measurements.iter().any(|found| found["phase"] == "failed"), "{measurements:?}");
    case.is(Aborting, 1, 0, &["aborting"]);
}

#[test]
fn a_person_may_overrule_the_numbers_and_what_comes_then_is_judged_by_itself() {
    let steps = vec![Step::SetWeight(500), wait(60), Step::SetWeight(1000), analysis(100, 600)];
    let mut plan = plan(Strategy::Canary, steps);
    plan.on_failure = OnFailure::Pause;
    let mut case = Case::start(plan);
    case.changes.clear();
    let changes = case.rollout.tick(case.now_ms, Some(&trapping(1000)));
    case.changes.extend(changes);
    case.is(Inconclusive, 1, 500, &["inconclusive"]);
    case.answers(10_000).is(Inconclusive, 1, 500, &[]);
    case.promote().is(Progressing, 3, 1000, &["continued", "overruled", "weight", "waiting"]);
    case.seconds(10).is(Progressing, 3, 1000, &[]);
    let changes = case.rollout.tick(case.now_ms, Some(&trapping(1000)));
    case.changes.extend(changes);
    case.is(Inconclusive, 3, 1000, &["inconclusive"]);
    case.does(Rollout::resume).is(Progressing, 3, 1000, &["resumed", "overruled", "waiting"]);
    case.answers(1000).is(Promoting, 4, WHOLE, &["passed", "promoting"]);
}

#[test]
fn a_plan_may_leave_failures_to_a_person() {
    let steps = vec![Step::SetWeight(500), wait(60)];
    let plan = Plan { on_failure: OnFailure::Pause, ..plan(Strategy::Canary, steps) };
    let mut case = Case::start(plan);
    case.changes.clear();
    case.judge(failed()).is(Inconclusive, 1, 500, &["inconclusive"]);
    case.judge(failed()).is(Inconclusive, 1, 500, &[]);
    assert!(case.rollout.reason.starts_with("it traps; a person must decide"), "{}", case.rollout.reason);
    case.promote().is(Promoting, 2, WHOLE, &["continued", "promoting"]);
}

#[test]
fn a_shadow_ends_before_traffic_begins_and_a_person_lets_it_in() {
    let steps = vec![shadow(1000), ASK, Step::SetWeight(500), wait(60)];
    let mut case = Case::start(plan(Strategy::Shadow, steps));
    case.is(Shadowing, 0, 0, &["started", "waiting"]);
    assert_eq!(case.rollout.traffic().shadow_share, 1000);
    case.promote().is(Paused, 1, 0, &["continued", "paused"]);
    assert_eq!(case.rollout.traffic().shadow_share, 0);
    case.seconds(5000).is(Paused, 1, 0, &[]);
    case.does(Rollout::resume).is(Progressing, 3, 500, &["continued", "weight", "waiting"]);
}

#[test]
fn a_person_says_when_each_step_of_a_manual_rollout_begins() {
    let mut case = Case::start(plan(
        Strategy::Manual,
        vec![Step::SetWeight(500), analysis(10, 60), ASK, Step::SetWeight(5000)],
    ));
    case.is(Paused, 0, 0, &["started", "paused"]);
    assert!(case.rollout.traffic().candidate);
    assert!(case.rollout.reason.contains("`tenon promote` gives the candidate 5 % of the traffic"));
    case.seconds(1000).is(Paused, 0, 0, &[]);
    case.promote().is(Progressing, 1, 500, &["continued", "weight", "waiting"]);
    case.answers(10).is(Paused, 2, 500, &["passed", "paused"]);
    // One word is enough for a pause and the step behind it.
    case.promote().is(Paused, 4, 5000, &["continued", "weight", "paused"]);
    assert!(case.rollout.reason.contains("`tenon promote` gives the candidate all traffic"));
    case.promote().is(Promoting, 4, WHOLE, &["continued", "promoting"]);
}

#[test]
fn a_numberless_judgement_before_a_manual_step_does_not_begin_it() {
    let mut case = Case::start(plan(Strategy::Manual, vec![Step::SetWeight(500)]));
    case.judge(inconclusive());
    case.changes.clear();
    case.does(Rollout::resume).is(Paused, 0, 0, &["resumed", "paused"]);
    case.judge(inconclusive());
    case.changes.clear();
    case.promote().is(Paused, 1, 500, &["continued", "weight", "paused"]);
}

#[test]
fn a_pause_stops_the_clock_and_resume_goes_on_where_it_was() {
    let mut case = Case::start(plan(Strategy::Canary, vec![Step::SetWeight(500), wait(60)]));
    case.seconds(40).changes.clear();
    case.does(Rollout::pause).is(Paused, 1, 500, &["paused"]);
    case.seconds(500).is(Paused, 1, 500, &[]);
    case.does(Rollout::resume).is(Progressing, 1, 500, &["resumed"]);
    case.seconds(19).is(Progressing, 1, 500, &[]);
    case.seconds(1).is(Promoting, 2, WHOLE, &["promoting"]);
}

#[test]
fn time_in_which_nobody_ticked_is_not_waited() {
    let mut case = Case::start(plan(Strategy::Canary, vec![Step::SetWeight(500), wait(600)]));
    case.changes.clear();
    case.now_ms += 86_400 * SECOND;
    case.seconds(1).is(Progressing, 1, 500, &[]);
    // A clock that was set back goes on counting from there.
    case.now_ms -= 2 * 86_400 * SECOND;
    case.seconds(539).is(Progressing, 1, 500, &[]);
    case.seconds(2).is(Promoting, 2, WHOLE, &["promoting"]);
}

#[test]
fn a_full_promotion_skips_what_is_left() {
    let mut case = Case::start(Plan::of(Strategy::Shadow));
    case.changes.clear();
    case.does(|rollout, now_ms| rollout.promote(true, now_ms));
    let steps = case.rollout.plan.steps.len();
    case.is(Promoting, steps, WHOLE, &["continued", "promoting"]);
    assert_eq!(case.rollout.traffic().shadow_share, 0);
    // Until it is over there is a way back.
    case.does(|rollout, now_ms| rollout.rollback("a person said so", now_ms));
    case.is(Aborting, steps, 0, &["aborting"]);
    case.does(|rollout, now_ms| rollout.rollback("again", now_ms)).is(Aborting, steps, 0, &[]);
    case.seconds(1).is(RolledBack, steps, 0, &["rolled-back"]);
}

#[test]
fn commands_that_make_no_sense_are_answered_by_those_that_do() {
    type Command = fn(&mut Rollout, u64) -> Result<Vec<Change>, NotNow>;
    let promote: Command = |rollout, now_ms| rollout.promote(false, now_ms);
    let rollback: Command = |rollout, now_ms| rollout.rollback("no reason", now_ms);
    let check = |reach: &dyn Fn(&mut Case), command: Command, expected: &str| {
        let mut case = Case::start(plan(Strategy::Canary, vec![Step::SetWeight(500), wait(60)]));
        reach(&mut case);
        let before = serde_json::to_value(&case.rollout).unwrap();
        let error = command(&mut case.rollout, case.now_ms).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(serde_json::to_value(&case.rollout).unwrap(), before);
    };
    check(&|_| {}, Rollout::resume, "it is not paused");
    let stopped = |case: &mut Case| {
        case.does(Rollout::pause);
    };
    check(&stopped, Rollout::pause, "it waits already");
    let promoting = |case: &mut Case| {
        case.promote();
    };
    check(&promoting, promote, "`tenon rollback` goes back");
    check(&promoting, Rollout::pause, "`tenon rollback` goes back");
    let succeeded = |case: &mut Case| {
        case.promote().seconds(1);
    };
    for command in [promote, rollback, Rollout::pause, Rollout::resume] {
        check(&succeeded, command, "it has succeeded; `tenon rollback` goes back");
    }
    let aborting = |case: &mut Case| {
        case.judge(failed());
    };
    check(&aborting, promote, "deploy again");
    check(&aborting, Rollout::resume, "deploy again");
    let rolled_back = |case: &mut Case| {
        case.judge(failed()).seconds(1);
    };
    for command in [promote, rollback, Rollout::pause, Rollout::resume] {
        check(&rolled_back, command, "it was rolled back; deploy again");
    }
}

#[test]
fn looks_count_only_after_the_delay() {
    let mut plan = plan(Strategy::Canary, vec![Step::SetWeight(500), analysis(10, 600)]);
    plan.analysis.initial_delay_s = 60.0;
    let mut case = Case::start(plan);
    case.changes.clear();
    case.answers(50).seconds(58);
    assert_eq!(case.rollout.analysis.candidate_samples(), 0);
    case.answers(50).is(Promoting, 2, WHOLE, &["passed", "promoting"]);
}

/// A generator of numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    /// A number below `sides`.
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }

    fn step(&mut self) -> Step {
        let revision = if self.roll(2) == 0 { Side::Stable } else { Side::Candidate };
        match self.roll(6) {
            0 | 1 => Step::SetWeight(self.roll(10_001) as u16),
            2 => Step::Pause(Pause { duration_s: (self.roll(2) == 0).then(|| 1 + self.roll(300)) }),
            3 => analysis(1 + self.roll(200), 1 + self.roll(600)),
            4 => shadow(1 + self.roll(10_000) as u16),
            _ => Step::SetHeaderRoute(HeaderRoute {
                header: "x-ring".to_owned(),
                value: self.roll(3).to_string(),
                revision,
            }),
        }
    }

    /// Any plan, also of those that would be refused today.
    fn plan(&mut self) -> Plan {
        let strategies = [Strategy::AllAtOnce, Strategy::Canary, Strategy::Shadow, Strategy::Manual];
        let strategy = strategies[self.roll(4) as usize];
        let steps = self.roll(10);
        Plan {
            steps: (0..steps).map(|_| self.step()).collect(),
            on_failure: if self.roll(3) == 0 { OnFailure::Pause } else { OnFailure::Rollback },
            sticky: (self.roll(2) == 0).then_some(Sticky::Client),
            ..Plan::of(strategy)
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Tick(u64, Option<u64>),
    Promote(bool),
    Pause,
    Resume,
    Rollback,
    Judged(u64),
}

impl Event {
    fn any(dice: &mut Dice) -> Event {
        match dice.roll(40) {
            0..=24 => {
                let passed = [0, 1, 250, 10_000, 3_600_000][dice.roll(5) as usize];
                Event::Tick(passed, (dice.roll(2) == 0).then(|| dice.roll(100)))
            }
            25..=29 => Event::Promote(dice.roll(20) == 0),
            30..=32 => Event::Pause,
            33..=37 => Event::Resume,
            38 if dice.roll(4) == 0 => Event::Rollback,
            _ => Event::Judged(dice.roll(6)),
        }
    }

    fn happens(self, rollout: &mut Rollout, now_ms: u64) -> Result<Vec<Change>, NotNow> {
        match self {
            Event::Tick(_, calls) => {
                let arms = calls.map(|calls| BTreeMap::from([(FUNCTION.to_owned(), good(calls))]));
                Ok(rollout.tick(now_ms, arms.as_ref()))
            }
            Event::Promote(full) => rollout.promote(full, now_ms),
            Event::Pause => rollout.pause(now_ms),
            Event::Resume => rollout.resume(now_ms),
            Event::Rollback => rollout.rollback("a person said so", now_ms),
            // A judgement comes only to one that is judged.
            Event::Judged(_) if matches!(rollout.phase, Promoting | Succeeded | Aborting | RolledBack) => {
                Ok(Vec::new())
            }
            Event::Judged(which) => {
                let mut changes = Vec::new();
                rollout.judge(if which == 0 { failed() } else { inconclusive() }, &mut changes);
                Ok(changes)
            }
        }
    }
}

fn written(rollout: &Rollout) -> serde_json::Value {
    serde_json::to_value(rollout).unwrap()
}

#[test]
fn any_events_in_any_order_keep_it_sound() {
    let mut ended = [0, 0];
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let stable = (dice.roll(10) > 0).then_some(1);
        let mut case = Case::of(stable, dice.plan());
        for turn in 0..60 {
            let event = Event::any(&mut dice);
            if let Event::Tick(passed, _) = event {
                case.now_ms += passed;
            }
            let rollout = &mut case.rollout;
            let (was_over, before) = (rollout.is_over(), rollout.traffic());
            // What a restarted host reads goes on in the same way.
            let read = (turn % 5 == 0).then(|| serde_json::to_string(rollout).unwrap());
            let happened = event.happens(rollout, case.now_ms);
            if let Some(json) = read {
                let mut read: Rollout = serde_json::from_str(&json).unwrap();
                assert_eq!(serde_json::to_string(&read).unwrap(), json);
                assert_eq!(event.happens(&mut read, case.now_ms), happened, "seed {seed} turn {turn}");
                assert_eq!(written(&read), written(rollout), "seed {seed} turn {turn}: {event:?}");
            }

            let wanted = rollout.traffic();
            let context = format!("seed {seed} turn {turn}: {event:?} {:?} {:?}", rollout.phase, wanted);
            assert!(wanted.weight <= WHOLE && wanted.shadow_share <= WHOLE, "{context}");
            assert!(wanted.header_routes.len() <= 3, "{context}");
            assert!(wanted.candidate || (wanted.weight, wanted.shadow_share) == (0, 0), "{context}");
            match rollout.phase {
                Promoting | Succeeded => assert_eq!(wanted.weight, WHOLE, "{context}"),
                Aborting | RolledBack => assert!(!wanted.candidate, "{context}"),
                _ => assert!(!rollout.reason.is_empty(), "{context}"),
            }
            if wanted != before {
                assert!(matches!(&happened, Ok(changes) if !changes.is_empty()), "silent: {context}");
            }
            if was_over {
                assert!(rollout.is_over() && wanted == before, "{context}");
                assert!(happened.map_or(true, |changes| changes.is_empty()), "{context}");
            } else {
                let mut back = rollout.clone();
                if !back.is_over() {
                    back.rollback("enough", case.now_ms).unwrap();
                    assert!(!back.traffic().candidate, "{context}");
                    back.tick(case.now_ms, None);
                    assert_eq!(back.phase, RolledBack, "{context}");
                }
            }
        }
        if case.rollout.is_over() {
            ended[usize::from(case.rollout.phase == Succeeded)] += 1;
        }
    }
    assert!(ended.iter().all(|count| *count > 15), "too few ended in one of the two ways: {ended:?}");
}

#[test]
fn no_rollout_waits_for_ever_but_for_a_person() {
    for seed in 0..100 {
        let mut case = Case::start(Dice(seed).plan());
        case.seconds(20_000);
        assert!(
            case.rollout.is_over() || matches!(case.rollout.phase, Paused | Inconclusive),
            "seed {seed}: {:?}",
            case.rollout
        );
        // A person who always says go on comes to the end.
        for _ in 0..20 {
            if matches!(case.rollout.phase, Paused | Inconclusive) {
                case.promote();
            }
            case.seconds(700);
        }
        assert_eq!(case.rollout.phase, Succeeded, "seed {seed}");
    }
}
