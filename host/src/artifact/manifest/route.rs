//! Which routes a trigger may have, and when two of them are the same.

use routefinder::RouteSpec;

/// First segments of paths that the host itself serves.
const RESERVED: [&str; 2] = ["v2", ".well-known"];
const MAX_LENGTH: usize = 512;

/// A route in its one normal form.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// Begins with `/` and does not end with one; ends in `/...` where it takes every path below.
    pub(super) text: String,
    /// Equal for routes that match the same paths: names of parameters do not matter.
    pub(super) pattern: String,
}

/// Reads a route of Spin's: `/exact`, `/:parameter`, `/below/...`.
pub(super) fn parse(route: &str) -> Result<Route, String> {
    let refuse = |why: &str| Err(format!("route `{route}` {why}"));
    if route.len() > MAX_LENGTH {
        return Err(format!("the route is longer than {MAX_LENGTH} bytes; make it shorter"));
    }
    let path = route.strip_prefix('/').unwrap_or(route);
    let path = path.strip_suffix('/').unwrap_or(path);
    let (path, wildcard) = match path {
        "..." | "*" => ("", true),
        path => match path.strip_suffix("/...").or_else(|| path.strip_suffix("/*")) {
            Some(path) => (path, true),
            None => (path, false),
        },
    };
    let segments: Vec<&str> = if path.is_empty() { Vec::new() } else { path.split('/').collect() };
    if let Some(reserved) = segments.first().filter(|first| RESERVED.contains(first)) {
        return refuse(&format!("is reserved: the host serves `/{reserved}` itself; choose another path"));
    }
    let mut pattern = String::new();
    let mut parameters: Vec<&str> = Vec::new();
    for segment in &segments {
        pattern.push('/');
        if let Err(why) = check_segment(segment, &mut pattern, &mut parameters) {
            return refuse(&why);
        }
    }
    let end = if wildcard { "/..." } else { "" };
    let text = if segments.is_empty() && wildcard { end.to_owned() } else { format!("/{path}{end}") };
    let routed = text.strip_suffix("...").map_or(text.clone(), |prefix| format!("{prefix}*"));
    if let Err(why) = routed.parse::<RouteSpec>() {
        return refuse(&format!("is not a route: {why}"));
    }
    Ok(Route { text, pattern: pattern + end })
}

fn check_segment<'r>(
    segment: &'r str,
    pattern: &mut String,
    parameters: &mut Vec<&'r str>,
) -> Result<(), String> {
    match segment {
        "" => return Err("has an empty segment; write one `/` between two segments".to_owned()),
        "." | ".." => return Err("has a segment of dots; write the path that is meant".to_owned()),
        "..." | "*" => return Err("has a wildcard before its end; put `/...` last".to_owned()),
        _ => {}
    }
    // A request's path comes percent-encoded, so that nothing else would ever match.
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()+,;=:@%".contains(c);
    if let Some(wrong) = segment.chars().find(|c| !allowed(*c)) {
        return Err(match wrong {
            '*' => "has a `*` within a segment; a wildcard is a last segment `/...`".to_owned(),
            '?' | '#' => format!("has a `{wrong}`; a route is a path alone"),
            wrong => format!("has `{wrong}`, which no path has; write it percent-encoded"),
        });
    }
    for (index, part) in segment.split('.').enumerate() {
        if index > 0 {
            pattern.push('.');
        }
        let Some(parameter) = part.strip_prefix(':') else {
            pattern.push_str(part);
            continue;
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if parameter.is_empty() || !parameter.chars().all(is_name) {
            return Err(format!(
                "has a parameter `:{parameter}`; name it with letters, digits, `-` and `_`, up to the next \
                 `/` or `.`"
            ));
        }
        if parameters.contains(&parameter) {
            return Err(format!("has `:{parameter}` twice; give each parameter a name of its own"));
        }
        parameters.push(parameter);
        pattern.push(':');
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes() {
        let check = |route: &str, text: &str, pattern: &str| {
            let expected = Route { text: text.to_owned(), pattern: pattern.to_owned() };
            assert_eq!(parse(route), Ok(expected), "{route}");
        };
        check("/", "/", "");
        check("", "/", "");
        check("/...", "/...", "/...");
        check("*", "/...", "/...");
        check("digits", "/digits", "/digits");
        check("/digits/", "/digits", "/digits");
        check("/a/*", "/a/...", "/a/...");
        check("/a/...", "/a/...", "/a/...");
        check("/:user/x.:kind", "/:user/x.:kind", "/:/x.:");
        check("/v2x", "/v2x", "/v2x");
        check("/a/v2", "/a/v2", "/a/v2");
        check("/:any/...", "/:any/...", "/:/...");
        check("/a%20b", "/a%20b", "/a%20b");
    }

    #[test]
    fn bad_routes() {
        let check = |route: &str, expected: &str| {
            let error = parse(route).unwrap_err();
            assert!(error.contains(expected), "{route}: {error}");
        };
        check("///", "empty segment");
        check("/a//b", "empty segment");
        check("/a/../b", "dots");
        check("/.../b", "wildcard before its end");
        check("/*/b", "wildcard before its end");
        check("/*.js", "`*` within a segment");
        check("/a?b=c", "a path alone");
        check("/a b", "percent-encoded");
        check("/ä", "percent-encoded");
        check("/:", "parameter");
        check("/:a:b", "parameter");
        check("/:a/:a", "twice");
        check("/v2", "reserved");
        check("v2/...", "reserved");
        check("/v2/models/:name", "reserved");
        check("/.well-known/spin/health", "reserved");
        check("/.well-known/...", "reserved");
        check(&format!("/{}", "a/".repeat(400)), "longer");
    }

    #[test]
    fn a_good_route_never_panics_in_the_router() {
        for route in ["/", "/...", "/:a.:b/...", "/.a./b", "/a..b", "/:a..b", "/:a./b", "/..a"] {
            let route = parse(route).unwrap().text.replace("...", "*");
            let mut router = routefinder::Router::new();
            router.add(route.as_str(), ()).unwrap();
            for path in ["/", "", "/x", "/x.y", "/x.y/z", "/.", "/..", "/a..b", "/x..b", "/é/é.é", "//"] {
                router.best_match(path);
            }
        }
    }
}
