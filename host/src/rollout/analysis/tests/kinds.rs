//! Candidates that must be rolled back, and candidates that must not.
//!
//! Also a part of `benches`.

use super::simulation::{Behaviour, Kind, Traffic};

fn good(name: &'static str) -> Kind {
    let stable = Behaviour::default();
    let candidate = stable.clone();
    Kind { name, bad: false, stable, candidate, from: 0, traffic: Traffic::Even, shadowed: false }
}

fn bad(name: &'static str, candidate: Behaviour) -> Kind {
    Kind { bad: true, candidate, ..good(name) }
}

fn both(kind: Kind, behaviour: Behaviour) -> Kind {
    Kind { stable: behaviour.clone(), candidate: behaviour, ..kind }
}

/// Candidates that are as good as the stable revision, or nearly, or better.
pub(super) fn good_kinds() -> Vec<Kind> {
    let usual = Behaviour::default;
    let failing = Behaviour { errors: 0.2, raised: 0.1, ..usual() };
    let wide = Behaviour { spread: 1.5, ..usual() };
    vec![
        good("equal"),
        Kind { traffic: Traffic::Bursty, ..good("equal, bursts and outages") },
        Kind { traffic: Traffic::AlmostNone, ..good("equal, almost no traffic") },
        Kind { traffic: Traffic::ChangingWeights, ..good("equal, weights that change, bursts and outages") },
        Kind { traffic: Traffic::Stalls, ..good("equal, each stalls for 2 % of the time by itself") },
        both(good("equal, three of ten calls fail"), failing),
        both(good("equal, times spread widely"), wide),
        both(good("equal, always the same time"), Behaviour { spread: 0.0, ..usual() }),
        both(
            good("equal, 200 classes"),
            Behaviour { classes: (1..=200).map(|n| 1.0 / f64::from(n)).collect(), ..usual() },
        ),
        Kind { candidate: Behaviour { median_ms: 4.0, ..usual() }, ..good("twice as fast") },
        Kind { candidate: Behaviour { errors: 0.0, raised: 0.0, ..usual() }, ..good("fails less") },
        Kind { candidate: Behaviour { median_ms: 8.8, ..usual() }, ..good("10 % slower") },
        Kind { candidate: Behaviour { scale: 1.02, ..usual() }, ..good("values 2 % larger") },
        // Errors at 1.25 times the odds, 1.19 times the time, 1.47 times the memory: to the bucket what is tolerated.
        Kind {
            stable: Behaviour { errors: 0.2, raised: 0.0, ..usual() },
            candidate: Behaviour { errors: 0.238, raised: 0.0, median_ms: 9.5, memory_mib: 29.0, ..usual() },
            ..good("just as bad as is tolerated")
        },
        Kind { shadowed: true, ..good("equal, shadowed") },
    ]
}

/// Candidates that are worse.
pub(super) fn bad_kinds() -> Vec<Kind> {
    let usual = Behaviour::default;
    let mut one_wrong = usual();
    one_wrong.classes[3] = 0.0;
    one_wrong.classes[5] = 2.0;
    let trapping = Behaviour { traps: 0.005, ..usual() };
    vec![
        bad("2x slower", Behaviour { median_ms: 16.0, ..usual() }),
        bad("slowest 1 % 3x slower", Behaviour { tail: 0.01, tail_factor: 3.0, ..usual() }),
        bad("slowest 5 % 3x slower", Behaviour { tail: 0.05, tail_factor: 3.0, ..usual() }),
        bad("traps in 1 of 200", trapping.clone()),
        bad("always traps", Behaviour { traps: 1.0, ..usual() }),
        bad("limit kills in 1 of 100", Behaviour { limit_kills: 0.01, ..usual() }),
        bad("fails in 1 of 50", Behaviour { errors: 0.02, ..usual() }),
        bad("5 % more calls raise", Behaviour { raised: 0.06, ..usual() }),
        bad("wrong in one class of ten", one_wrong.clone()),
        bad("NaN in 1 of 100", Behaviour { non_finite: 0.01, ..usual() }),
        bad("values 1.5x", Behaviour { scale: 1.5, ..usual() }),
        bad("values half a deviation larger", Behaviour { offset: 1.5, ..usual() }),
        bad("2x the memory", Behaviour { memory_mib: 40.0, ..usual() }),
        Kind { traffic: Traffic::Bursty, ..bad("traps in 1 of 200, bursts and outages", trapping.clone()) },
        Kind {
            traffic: Traffic::Bursty,
            ..bad("2x slower, bursts and outages", Behaviour { median_ms: 16.0, ..usual() })
        },
        Kind { traffic: Traffic::Bursty, ..bad("wrong in one class of ten, bursts and outages", one_wrong) },
        Kind { from: 1000, ..bad("2x slower after 1,000 calls", Behaviour { median_ms: 16.0, ..usual() }) },
        Kind {
            from: 1000,
            ..bad("traps in 1 of 50 after 1,000 calls", Behaviour { traps: 0.02, ..usual() })
        },
        Kind {
            shadowed: true,
            ..bad("answers 1 of 20 otherwise", Behaviour { mismatched: 0.05, ..usual() })
        },
    ]
}
