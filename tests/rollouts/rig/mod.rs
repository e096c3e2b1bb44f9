//! What proves deployments: revisions that name themselves, callers that check every answer, a ledger of what each
//! call might have reached, and stories that change a host under load and kill it. The suite and the benchmarks run
//! the same.

pub(crate) mod api;
pub(crate) mod cycles;
pub(crate) mod host;
pub(crate) mod image;
pub(crate) mod kills;
pub(crate) mod ledger;
pub(crate) mod load;
pub(crate) mod question;
#[path = "../../guests/candidate/src/reference.rs"]
pub(crate) mod reference;
