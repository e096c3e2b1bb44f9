//! Faults that are planted in a stand-in for a host: what proves deployments must find every one.

use std::path::Path;
use std::time::Duration;

use super::fake::{Fake, Fault, image};
use super::rig::host::Life as _;
use super::rig::image::App;
use super::rig::{cycles, kills};

fn run<T>(story: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(100), story).await }).unwrap()
}

/// Cycles on a host with this fault; what was found.
fn cycled(fault: Fault) -> Result<(), String> {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let mut fake = Fake::new(fault, Duration::ZERO).unwrap();
        fake.start().await.unwrap();
        let app = App::new("f", Path::new("-"));
        let image = image("f", folder.path()).unwrap();
        let settings = cycles::Settings { cycles: 2, callers: 4, calls: 120 };
        let report = cycles::run(&fake.control(), fake.address(), &app, &image, &settings).await;
        let report = report.map_err(|error| format!("{error:#}"))?;
        assert!(report.verdict.calls > 2_000, "{report:?}");
        assert_eq!((report.rollbacks.len(), report.deployments.len()), (4, 6));
        report.flawless().map_err(|error| format!("{error:#}"))
    })
}

#[test]
fn a_host_without_fault_passes_all_cycles() {
    assert_eq!(cycled(Fault::None), Ok(()));
}

#[test]
fn callers_find_every_fault_of_the_traffic() {
    let faults = [
        (Fault::LateChange, "not one of"),
        (Fault::OtherSplit, "User("),
        (Fault::NoTesters, "Tester was answered by revision"),
        (Fault::Refuses, "status 503"),
        (Fault::WrongAnswer, "scores are"),
        (Fault::BreaksOff, "got no answer"),
        (Fault::OtherName, "answered by revision"),
        (Fault::OtherAnswer, "calls itself"),
        (Fault::Lingers, "answered by revision"),
        (Fault::TellsOtherWeight, "is told in"),
    ];
    for (fault, expected) in faults {
        let found = cycled(fault).expect_err(&format!("{fault:?} is not found"));
        assert!(found.contains(expected), "{fault:?}: {found}");
    }
}

/// Kills of a host with this fault; what was found.
fn killed(fault: Fault) -> Result<(), String> {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let mut fake = Fake::new(fault, Duration::from_millis(2)).unwrap();
        let apps = ["f", "g"].map(|name| {
            let image = image(name, &folder.path().join(name)).unwrap();
            (App::new(name, Path::new("-")), image)
        });
        let settings = kills::Settings { kills: 20, seed: 3 };
        let report = kills::run(&mut fake, &apps, &settings).await.map_err(|error| format!("{error:#}"))?;
        assert!(
            report.deployments > 20 && report.during_changes > 0 && report.during_preparations > 0,
            "{report:?}"
        );
        Ok(())
    })
}

#[test]
fn a_host_without_fault_passes_all_kills() {
    assert_eq!(killed(Fault::None), Ok(()));
}

#[test]
fn kills_find_every_fault_of_what_is_kept() {
    let faults = [
        (Fault::Forgets, "and should not"),
        (Fault::DoesMore, "and should not"),
        (Fault::ServesOther, "answers"),
        (Fault::ForgetsHistory, "history had"),
    ];
    for (fault, expected) in faults {
        let found = killed(fault).expect_err(&format!("{fault:?} is not found"));
        assert!(found.contains(expected), "{fault:?}: {found}");
    }
}
