//! What is served at one moment: which app a path or a name leads to, and which of its revisions.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use thiserror::Error;

use super::{Asker, Division, Function, Matched, Release, Route, Routes, Traffic};

/// What is served at one moment. It never changes: a deployment publishes the next one.
#[derive(Default)]
pub struct Snapshot {
    apps: BTreeMap<String, Arc<Traffic>>,
    /// The routes of all revisions that are called; for those that several have, the stable one's.
    routes: Routes,
    /// Whose each of `routes` is.
    owners: Vec<Arc<Traffic>>,
    /// By the names of the Open Inference Protocol.
    models: BTreeMap<String, Arc<Traffic>>,
}

/// Why apps cannot be served beside each other.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Conflict {
    #[error("the route `{route}` of app `{app}` is taken by app `{other}`; give one of them another route")]
    Route { route: String, app: String, other: String },
    #[error(
        "a function of app `{app}` is called `{model}` in the Open Inference Protocol, and so is one of app `{other}`; \
         give one of them a name of its own (`tool.tenon.model_name`)"
    )]
    Model { model: String, app: String, other: String },
    #[error("{0}")]
    Unreadable(String),
}

impl Snapshot {
    /// # Errors
    /// Where two apps have the same route or name.
    pub fn of(apps: BTreeMap<String, Arc<Traffic>>) -> Result<Snapshot, Conflict> {
        let mut routes: Vec<Route> = Vec::new();
        let mut shapes: HashMap<String, usize> = HashMap::new();
        let mut owners: Vec<Arc<Traffic>> = Vec::new();
        let mut models: BTreeMap<String, Arc<Traffic>> = BTreeMap::new();
        for (app, traffic) in &apps {
            let called =
                || std::iter::once(&traffic.stable).chain(traffic.candidate.iter().map(|it| &it.release));
            for route in called().flat_map(|release| release.routes.iter()) {
                match shapes.entry(route.shape()) {
                    Entry::Vacant(vacant) => {
                        vacant.insert(routes.len());
                        routes.push(route.clone());
                        owners.push(Arc::clone(traffic));
                    }
                    Entry::Occupied(taken) if Arc::ptr_eq(&owners[*taken.get()], traffic) => {}
                    Entry::Occupied(taken) => {
                        let other = owners[*taken.get()].stable.app.name.clone();
                        return Err(Conflict::Route {
                            route: route.pattern.clone(),
                            app: app.clone(),
                            other,
                        });
                    }
                }
            }
            for model in called().flat_map(|release| release.models.keys()) {
                match models.get(model) {
                    Some(other) if !Arc::ptr_eq(other, traffic) => {
                        let other = other.stable.app.name.clone();
                        return Err(Conflict::Model { model: model.clone(), app: app.clone(), other });
                    }
                    Some(_) => {}
                    None => drop(models.insert(model.clone(), Arc::clone(traffic))),
                }
            }
        }
        let routes = Routes::new(routes).map_err(Conflict::Unreadable)?;
        Ok(Snapshot { apps, routes, owners, models })
    }

    pub fn apps(&self) -> &BTreeMap<String, Arc<Traffic>> {
        &self.apps
    }

    /// The route of a path, in the revision that answers this request; and the division that it was chosen by.
    pub fn find(&self, path: &str, asker: &Asker<'_>) -> Option<(Matched<'_>, Option<&Arc<Division>>)> {
        let matched = self.routes.find(path)?;
        let traffic = &self.owners[matched.index];
        if traffic.candidate.is_none() {
            return Some((matched, None));
        }
        // The other revision may have other routes.
        let chosen = traffic.choose(asker);
        Some((chosen.release.routes.find(path)?, chosen.division))
    }

    /// Whether a path leads anywhere.
    pub fn leads(&self, path: &str) -> bool {
        self.routes.find(path).is_some()
    }

    /// The apps that have a function of this name in the Open Inference Protocol: one.
    pub fn model(&self, name: &str) -> Option<&Arc<Traffic>> {
        self.models.get(name)
    }

    /// All functions that take tensors, at the versions that can be asked for.
    pub fn models(&self) -> impl Iterator<Item = &Arc<Function>> {
        self.models.iter().flat_map(|(name, traffic)| traffic.versions(name))
    }

    /// Every revision that is there, the stable one of each app first.
    pub fn releases(&self) -> impl Iterator<Item = &Arc<Release>> {
        self.apps.values().flat_map(|traffic| traffic.releases())
    }

    /// The functions of the stable revisions.
    pub fn functions(&self) -> impl Iterator<Item = &Arc<Function>> {
        self.apps.values().flat_map(|traffic| &traffic.stable.functions)
    }

    /// The routes of the revisions that are called.
    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter()
    }
}
