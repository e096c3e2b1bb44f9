//! From a path to what is served there, with Spin's precedence.

use std::collections::BTreeMap;
use std::sync::Arc;

use routefinder::Router;

use super::Function;

/// What a route leads to.
#[derive(Clone)]
pub enum Target {
    Function(Arc<Function>),
    Static(Arc<StaticResponse>),
}

/// An answer that stands in the manifest.
#[derive(Clone, Debug)]
pub struct StaticResponse {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

/// A route as its author wrote it: `/path`, with `:name` for one segment and a last `/...` for all below.
#[derive(Clone)]
pub struct Route {
    pub pattern: String,
    pub target: Target,
}

/// The public routes of a host.
#[derive(Default)]
pub struct Routes {
    router: Router<usize>,
    routes: Vec<Route>,
}

/// A path and the route that it took.
pub struct Matched<'a> {
    pub route: &'a Route,
    /// Which of its routes it is.
    pub index: usize,
    /// What the last `/...` stands for: `/bar` for `/foo/bar` under `/foo/...`, else empty.
    pub rest: String,
    /// What each `:name` stands for.
    pub parameters: Vec<(String, String)>,
}

impl Routes {
    /// # Errors
    /// Names a route that cannot be read.
    pub fn new(routes: Vec<Route>) -> Result<Routes, String> {
        let mut router = Router::new();
        for (index, route) in routes.iter().enumerate() {
            let pattern = match route.pattern.strip_suffix("/...") {
                Some(parent) => format!("{parent}/*"),
                None => route.pattern.clone(),
            };
            router
                .add(pattern.as_str(), index)
                .map_err(|error| format!("route `{}`: {error}", route.pattern))?;
        }
        Ok(Routes { router, routes })
    }

    /// The most exact route for a path.
    pub fn find(&self, path: &str) -> Option<Matched<'_>> {
        let matched = self.router.best_match(path)?;
        let index = *matched.handler();
        let route = &self.routes[index];
        let captures = matched.captures();
        let parameters = captures.params().iter();
        let parameters = parameters.map(|capture| (capture.name().to_owned(), capture.value().to_owned()));
        let parameters = parameters.collect();
        Some(Matched { route, index, rest: rest(route, path, captures.wildcard()), parameters })
    }

    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter()
    }
}

impl Route {
    /// The same for all routes that lead the same paths, whatever they call the parts that differ.
    pub fn shape(&self) -> String {
        let segments = self.pattern.split('/').filter(|segment| !segment.is_empty());
        segments.fold(String::new(), |shape, segment| {
            let segment = if segment.starts_with(':') { ":" } else { segment };
            format!("{shape}/{segment}")
        })
    }
}

/// The router trims slashes; Spin gives the rest of a path with its leading and trailing ones.
fn rest(route: &Route, path: &str, wildcard: Option<&str>) -> String {
    if !route.pattern.ends_with("/...") {
        return String::new();
    }
    let wildcard = wildcard.unwrap_or_default().trim_matches('/');
    let slash = if path.ends_with('/') { "/" } else { "" };
    match wildcard {
        "" => slash.to_owned(),
        wildcard => format!("/{wildcard}{slash}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, expected: Option<(&str, &str)>) {
        let target = || {
            Target::Static(Arc::new(StaticResponse {
                status: 200,
                headers: BTreeMap::new(),
                body: String::new(),
            }))
        };
        let patterns = ["/", "/foo/...", "/foo/exact", "/foo/:id/x", "/files/...", "/a/b"];
        let routes = patterns
            .iter()
            .map(|pattern| Route { pattern: (*pattern).to_owned(), target: target() })
            .collect();
        let routes = Routes::new(routes).unwrap();
        let found = routes.find(path);
        let found = found.as_ref().map(|found| (found.route.pattern.as_str(), found.rest.as_str()));
        assert_eq!(found, expected, "{path}");
    }

    #[test]
    fn the_most_exact_route_wins() {
        check("/", Some(("/", "")));
        check("/foo", Some(("/foo/...", "")));
        check("/foo/", Some(("/foo/...", "/")));
        check("/foo/bar", Some(("/foo/...", "/bar")));
        check("/foo/bar/", Some(("/foo/...", "/bar/")));
        check("/foo/exact", Some(("/foo/exact", "")));
        check("/foo/7/x", Some(("/foo/:id/x", "")));
        check("/foo/7/y", Some(("/foo/...", "/7/y")));
        check("/a/b", Some(("/a/b", "")));
        check("/a", None);
        check("/nothing", None);
    }
}
