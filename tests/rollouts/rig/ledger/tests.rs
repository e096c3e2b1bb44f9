//! A ledger that cannot find fault proves nothing: every kind of fault is planted here.

use super::*;

const APP: &str = "app";
const DIGEST: &str = "sha256:abc";

/// A ledger with moments in milliseconds.
struct Story {
    start: Instant,
    ledger: Ledger,
}

impl Story {
    /// Revision 1 is stable from the beginning on; 2 is a candidate.
    fn new() -> Story {
        let mut ledger = Ledger::new(APP, State::stable(1));
        for (revision, label) in [(1, 11), (2, 12), (3, 13)] {
            ledger.prepared(revision, label).unwrap();
        }
        let start = ledger.entries[0].begun;
        Story { start, ledger }
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    fn command(&mut self, state: State, sent: u64, acknowledged: Option<u64>) -> Sent {
        let command = self.ledger.send_at(state, self.at(sent));
        if let Some(acknowledged) = acknowledged {
            self.ledger.acknowledge_at(command, self.at(acknowledged));
        }
        command
    }

    fn call(&self, caller: Caller, sent: u64, ended: u64, what: What) -> Seen {
        Seen { caller, sent: self.at(sent), ended: self.at(ended), what }
    }

    /// Whether such a call is found fault with, which must name the reason.
    #[track_caller]
    fn check(&self, caller: Caller, (sent, ended): (u64, u64), what: What, expected: Result<(), &str>) {
        let verdict = self.ledger.judge(&[self.call(caller, sent, ended, what.clone())]);
        match expected {
            Ok(()) => assert_eq!(verdict.wrong, 0, "{what:?} at {sent}: {:?}", verdict.examples),
            Err(reason) => {
                assert_eq!(verdict.wrong, 1, "{what:?} at {sent} passes");
                assert!(verdict.examples[0].contains(reason), "{:?}", verdict.examples);
            }
        }
    }
}

fn right(revision: u64) -> What {
    What::Right { revision, label: revision as u32 + 10 }
}

/// A user who falls below this weight, or not.
fn user(below: u16, inside: bool) -> Caller {
    let found = (0..).find(|user| (bucket(APP, DIGEST, &user.to_string()) < below) == inside);
    Caller::User(found.unwrap())
}

#[test]
fn the_split_is_the_one_of_the_definition() {
    // By another implementation: sha256sum, and a calculator.
    assert_eq!(bucket("app", "sha256:abc", "7"), 5_969);
    assert_eq!(bucket("app", "sha256:abc", "alice"), 9_901);
    let below = (0..10_000).filter(|user| bucket(APP, DIGEST, &user.to_string()) < 2_500).count();
    assert!((2_300..2_700).contains(&below), "{below}");
}

#[test]
fn an_answer_of_a_former_revision_is_a_fault_only_after_the_acknowledgement() {
    let mut story = Story::new();
    let _ = story.command(State::stable(2), 100, Some(120));
    let anybody = Caller::Anybody;
    story.check(anybody, (10, 20), right(1), Ok(()));
    story.check(anybody, (10, 99), right(2), Err("answered by revision 2"));
    story.check(anybody, (10, 100), right(2), Ok(()));
    story.check(anybody, (105, 110), right(1), Ok(()));
    story.check(anybody, (105, 110), right(2), Ok(()));
    story.check(anybody, (119, 500), right(1), Ok(()));
    story.check(anybody, (121, 500), right(1), Err("answered by revision 1"));
    story.check(anybody, (121, 500), right(2), Ok(()));
    story.check(anybody, (121, 500), right(3), Err("answered by revision 3"));
}

#[test]
fn a_command_that_was_refused_changes_nothing_and_one_that_was_lost_may() {
    let mut story = Story::new();
    let refused = story.command(State::stable(2), 100, None);
    story.ledger.refuse(refused);
    let _ = story.command(State::stable(3), 200, None);
    let anybody = Caller::Anybody;
    story.check(anybody, (150, 160), right(1), Ok(()));
    story.check(anybody, (150, 160), right(2), Err("answered by revision 2"));
    story.check(anybody, (900, 910), right(1), Ok(()));
    story.check(anybody, (900, 910), right(3), Ok(()));
    story.check(anybody, (900, 910), right(2), Err("answered by revision 2"));
    let _ = story.command(State::stable(2), 1_000, Some(1_010));
    story.check(anybody, (1_020, 1_030), right(1), Err("answered by revision 1"));
    story.check(anybody, (1_020, 1_030), right(3), Err("answered by revision 3"));
}

#[test]
fn users_stay_where_the_definition_puts_them() {
    let mut story = Story::new();
    let canary = State::stable(1).with(2, DIGEST, 500, true);
    let _ = story.command(canary.clone(), 100, Some(110));
    let _ = story.command(canary.at(5_000), 200, Some(210));
    let (early, late) = (user(500, true), user(5_000, false));
    let between = (0..).map(Caller::User).find(|caller| {
        let Caller::User(user) = caller else { return false };
        (500..5_000).contains(&bucket(APP, DIGEST, &user.to_string()))
    });
    let between = between.unwrap();
    story.check(early, (120, 130), right(2), Ok(()));
    story.check(early, (120, 130), right(1), Err("answered by revision 1"));
    story.check(between, (120, 130), right(2), Err("answered by revision 2"));
    story.check(between, (190, 205), right(2), Ok(()));
    story.check(between, (190, 205), right(1), Ok(()));
    story.check(between, (220, 230), right(1), Err("answered by revision 1"));
    story.check(early, (220, 230), right(1), Err("answered by revision 1"));
    story.check(late, (220, 230), right(2), Err("answered by revision 2"));
    story.check(Caller::Tester, (120, 130), right(1), Err("answered by revision 1"));
    story.check(Caller::Tester, (120, 130), right(2), Ok(()));
    story.check(Caller::Anybody, (120, 130), right(1), Ok(()));
    story.check(Caller::Anybody, (120, 130), right(2), Ok(()));
    let _ = story.command(State::stable(1), 300, Some(310));
    story.check(early, (320, 330), right(2), Err("answered by revision 2"));
    story.check(Caller::Tester, (320, 330), right(2), Err("answered by revision 2"));
}

#[test]
fn weights_of_nothing_and_of_all_leave_no_choice() {
    let canary = State::stable(1).with(2, DIGEST, 0, false);
    assert_eq!(canary.answers(APP, Caller::Anybody), [1]);
    assert_eq!(canary.answers(APP, Caller::Tester), [1]);
    assert_eq!(canary.at(WHOLE).answers(APP, Caller::Anybody), [2]);
    assert_eq!(canary.at(WHOLE).answers(APP, Caller::User(5)), [2]);
}

#[test]
fn nothing_is_found_only_where_nothing_is() {
    let mut story = Story::new();
    let _ = story.command(State::absent(), 100, Some(120));
    let anybody = Caller::Anybody;
    story.check(anybody, (10, 20), What::Absent, Err("found nothing"));
    story.check(anybody, (10, 101), What::Absent, Ok(()));
    story.check(anybody, (110, 130), right(1), Ok(()));
    story.check(anybody, (130, 140), What::Absent, Ok(()));
    story.check(anybody, (130, 140), right(1), Err("answered by revision 1"));
}

#[test]
fn failures_wrong_answers_and_wrong_names_are_faults_always() {
    let story = Story::new();
    let anybody = Caller::Anybody;
    let wrong = What::Wrong { revision: Some(1), status: 200, why: "scores are off".into() };
    story.check(anybody, (10, 20), wrong, Err("scores are off"));
    let failed = What::Wrong { revision: None, status: 503, why: "overloaded".into() };
    story.check(anybody, (10, 20), failed, Err("status 503"));
    story.check(anybody, (10, 20), What::Broken { why: "closed".into() }, Err("closed"));
    story.check(anybody, (10, 20), What::Right { revision: 1, label: 12 }, Err("calls itself 12"));
}

#[test]
fn a_number_stands_for_one_revision() {
    let mut story = Story::new();
    assert_eq!(story.ledger.prepared(1, 11), Ok(()));
    assert!(story.ledger.prepared(1, 15).is_err());
}

#[test]
fn a_long_story_is_judged_as_each_of_its_parts() {
    let mut story = Story::new();
    for turn in 0..1_000 {
        let _ = story.command(State::stable(1 + turn % 3), 100 * turn + 50, Some(100 * turn + 60));
    }
    for turn in 1..1_000 {
        let now = 1 + turn % 3;
        story.check(Caller::Anybody, (100 * turn + 61, 100 * turn + 149), right(now), Ok(()));
        let next = 1 + (turn + 1) % 3;
        story.check(Caller::Anybody, (100 * turn + 61, 100 * turn + 149), right(next), Err("answered by"));
    }
}

#[test]
fn how_long_a_revision_goes_on_is_counted_from_the_command() {
    let story = Story::new();
    let call = |sent, ended, revision| story.call(Caller::Anybody, sent, ended, right(revision));
    let seen = [call(90, 150, 2), call(104, 110, 2), call(130, 140, 1), call(900, 910, 2)];
    let lingered = lingering(&seen, 2, story.at(100), story.at(500));
    assert_eq!(lingered, (Duration::from_millis(4), Duration::from_millis(50)));
    assert_eq!(lingering(&seen, 3, story.at(100), story.at(500)), (Duration::ZERO, Duration::ZERO));
}
