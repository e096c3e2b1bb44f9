//! Whether every path that leads somewhere still leads there.

use routefinder::Router;

use super::{quoted, shown};
use crate::artifact::manifest::{Manifest, Target, Trigger};

/// Stands for what a caller may write where a route has a name or a wildcard; no route has it.
const ANYTHING: &str = "4f9c1d";

/// Paths that lead elsewhere, or nowhere, in the new app.
///
/// One path for each pattern of either app stands for all that it matches: a path is told of where it follows another
/// pattern than before. Not seen are paths that are within two patterns with names in different places.
pub(super) fn breaks(live: &Manifest, new: &Manifest, breaks: &mut Vec<String>) {
    let (before, after) = (Table::of(live), Table::of(new));
    let mut told = Vec::new();
    let patterns = before.patterns().chain(after.patterns());
    for (pattern, path) in patterns.flat_map(|pattern| examples(pattern).map(move |path| (pattern, path))) {
        let Some(was) = before.find(&path) else { continue };
        let is = after.find(&path);
        if is.is_some_and(|is| same(was, is)) || told.contains(&pattern) {
            continue;
        }
        // A component that is gone has been told of.
        if matches!(was, Target::Component(id) if new.components.iter().all(|component| component.id != *id))
        {
            continue;
        }
        told.push(pattern);
        breaks.push(match is {
            None => format!(
                "the route {} led to {} and leads nowhere; keep its trigger",
                quoted(pattern),
                place(was)
            ),
            Some(is) => format!(
                "the route {} led to {} and leads to {}; give the other a route of its own",
                quoted(pattern),
                place(was),
                place(is)
            ),
        });
    }
}

/// Whether a trigger starts a component.
pub(super) fn leads_to(trigger: &Trigger, id: &str) -> bool {
    matches!(&trigger.target, Target::Component(target) if target == id)
}

/// The public routes of one app, as the host finds them.
struct Table<'a> {
    router: Router<usize>,
    routes: Vec<(&'a str, &'a Target)>,
}

impl<'a> Table<'a> {
    fn of(manifest: &'a Manifest) -> Table<'a> {
        let triggers = manifest.triggers.iter();
        let routes: Vec<_> =
            triggers.filter_map(|trigger| Some((trigger.route.as_deref()?, &trigger.target))).collect();
        let mut router = Router::new();
        for (index, (route, _)) in routes.iter().enumerate() {
            let pattern = match route.strip_suffix("/...") {
                Some(parent) => format!("{parent}/*"),
                None => (*route).to_owned(),
            };
            // The manifest has read it as a route already.
            let _ = router.add(pattern.as_str(), index);
        }
        Table { router, routes }
    }

    fn patterns(&self) -> impl Iterator<Item = &'a str> {
        self.routes.iter().map(|(route, _)| *route)
    }

    fn find(&self, path: &str) -> Option<&'a Target> {
        let matched = self.router.best_match(path)?;
        self.routes.get(*matched.handler()).map(|(_, target)| *target)
    }
}

/// Paths that a pattern stands for: with a wildcard, its parent and something below that.
fn examples(pattern: &str) -> impl Iterator<Item = String> {
    let (parent, below) = match pattern.strip_suffix("/...") {
        Some(parent) => (parent, true),
        None => (pattern, false),
    };
    let part = |part: &str| if part.starts_with(':') { ANYTHING.to_owned() } else { part.to_owned() };
    let segment = |segment: &str| segment.split('.').map(part).collect::<Vec<_>>().join(".");
    let path = parent.split('/').map(segment).collect::<Vec<_>>().join("/");
    let path = if path.is_empty() { "/".to_owned() } else { path };
    let deeper = below.then(|| format!("{}/{ANYTHING}/{ANYTHING}", path.trim_end_matches('/')));
    std::iter::once(path).chain(deeper)
}

fn same(one: &Target, other: &Target) -> bool {
    match (one, other) {
        (Target::Component(one), Target::Component(other)) => one == other,
        // What it says is the app's own affair, as what a component answers.
        (Target::Static { status: one, .. }, Target::Static { status: other, .. }) => one == other,
        _ => false,
    }
}

fn place(target: &Target) -> String {
    match target {
        Target::Component(id) => format!("component `{}`", shown(id)),
        Target::Static { status, .. } => format!("an answer with the status {status}"),
    }
}
