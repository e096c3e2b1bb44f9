//! What entries of `allowed_outbound_hosts` mean.

use super::*;

#[test]
fn entries_allow_what_they_say() {
    let check = |entry: &str, allowed: &[&str], denied: &[&str]| {
        let hosts = AllowedHosts::parse(&[entry.to_owned()]).unwrap_or_else(|error| panic!("{error}"));
        for (url, expected) in
            allowed.iter().map(|url| (url, true)).chain(denied.iter().map(|url| (url, false)))
        {
            let (scheme, rest) = url.split_once("://").unwrap();
            let port = rest.rsplit_once(':').filter(|_| !rest.ends_with(']'));
            let (host, port) = port.map_or((rest, None), |(host, port)| (host, port.parse().ok()));
            let port = port.or(well_known_port(scheme)).unwrap();
            let host = Destination::parse(host).unwrap();
            assert_eq!(hosts.allows(scheme, &host, port), expected, "{entry} and {url}");
        }
    };
    check(
        "https://example.com",
        &["https://example.com", "https://EXAMPLE.com.", "https://example.com:443"],
        &[
            "http://example.com:443",
            "https://example.com:8443",
            "https://a.example.com",
            "https://example.co",
        ],
    );
    check("HTTPS://Example.COM./", &["https://example.com"], &["https://example.org"]);
    check("http://example.com:8080", &["http://example.com:8080"], &["http://example.com"]);
    check("http://example.com:8080/", &["http://example.com:8080"], &["http://example.com"]);
    check("http://e.com:80..82", &["http://e.com:80", "http://e.com:81"], &["http://e.com:82"]);
    check("http://e.com:*", &["http://e.com:1", "http://e.com:65535"], &["https://e.com:1"]);
    check("*://e.com:443", &["https://e.com", "http://e.com:443"], &["http://e.com"]);
    check(
        "https://*.example.com",
        &["https://a.example.com", "https://a.b.example.com"],
        &["https://example.com", "https://badexample.com", "https://10.0.0.1"],
    );
    check(
        "https://*",
        &["https://a.b", "https://10.0.0.1", "https://[::1]", "https://self"],
        &["http://a.b", "https://a.b:444"],
    );
    check("*://*:*", &["http://a", "https://a:1", "redis://a:6379", "http://self"], &[]);
    check("http://10.0.0.0/8", &["http://10.1.2.3"], &["http://11.0.0.1", "http://e.com"]);
    check("*://10.1.2.3/24:80", &["http://10.1.2.9"], &["http://10.1.3.1"]);
    check("http://192.168.1.1:81", &["http://192.168.1.1:81"], &["http://192.168.1.2:81"]);
    check("http://[::1]:8001", &["http://[::1]:8001", "http://[0:0:0::1]:8001"], &["http://[::1]"]);
    check("http://[fd00::]/8:80", &["http://[fd12::1]"], &["http://[fe80::1]"]);
    check("http://::1", &["http://[::1]"], &["http://[::2]"]);
    check("http://self", &["http://self", "http://self.alt", "http://self:81"], &["http://e.com"]);
    check("redis://cache", &["redis://cache"], &["redis://cache:1", "http://cache:6379"]);
    check("http://back.spin.internal", &["http://back.spin.internal"], &["http://front.spin.internal"]);
    check(" http://e.com ", &["http://e.com"], &[]);
}

#[test]
fn what_is_no_entry_is_told_why() {
    let check = |entry: &str, expected: &str| {
        let error = AllowedHost::parse(entry).expect_err(entry);
        assert!(error.contains(expected), "{entry}: {error}");
    };
    check("", "`scheme://host[:port]`");
    check("example.com", "`scheme://host[:port]`");
    check("example.com:80", "`scheme://host[:port]`");
    check("insecure:allow-all", "`*://*:*`");
    check("://e.com", "scheme is missing");
    check("{http,https}://e.com", "no scheme");
    check("h2://e.com", "no scheme");
    check("http://", "not the name of a host");
    check("http://e.com/path", "path");
    check("http://e.com:80/path", "path");
    check("http://e.com/path:80", "path");
    check("http://{a,b}", "braces");
    check("http://a.*.com", "`*.example.com`");
    check("http://*.*.com", "`*.example.com`");
    check("http://*e.com", "`*.example.com`");
    check("http://b\u{fc}cher.de", "punycode");
    check("http://user@e.com", "not the name of a host");
    check("http://e..com", "not the name of a host");
    check("http://127.1", "neither a name nor an address");
    check("http://0x7f000001", "neither a name nor an address");
    check("http://10.0.0.0/33", "network");
    check("http://[::1", "`]`");
    check("*://e.com", "needs a port");
    check("ftp://e.com", "needs a port");
    check("http://e.com:99999", "no port");
    check("http://e.com:http", "no port");
    check("http://e.com:{80,81}", "no port");
    check("http://e.com:90..80", "empty");
    check("http://e.com:80..80", "empty");
    check(&format!("http://{}.com", "a".repeat(64)), "not the name of a host");
}

#[test]
fn an_entry_left_empty_by_a_variable_allows_nothing() {
    let hosts =
        AllowedHosts::parse(&["".to_owned(), "https://".to_owned(), "http://e.com".to_owned()]).unwrap();
    assert_eq!(hosts.iter().map(ToString::to_string).collect::<Vec<_>>(), ["http://e.com"]);
}

#[test]
fn destinations_are_read_as_they_are_compared() {
    let check = |host: &str, expected: Option<&str>| {
        let read = Destination::parse(host).ok().map(|host| host.to_string());
        assert_eq!(read.as_deref(), expected, "{host}");
    };
    check("Example.COM.", Some("example.com"));
    check("127.0.0.1", Some("127.0.0.1"));
    check("[::1]", Some("[::1]"));
    check("", Some("self"));
    check("self.alt", Some("self"));
    check("a_b.c", Some("a_b.c"));
    for wrong in ["2130706433", "127.1", "0x7f.0.0.0x1", "010.0.0.1", "a b", "a/b", "%6c", "a@b", "[x]", "."]
    {
        check(wrong, None);
    }
}

#[test]
fn the_entry_to_add_allows_what_was_asked_for() {
    for (scheme, host, port) in [
        ("http", "e.com", 80),
        ("https", "e.com", 443),
        ("https", "10.0.0.1", 8443),
        ("http", "::1", 81),
        ("http", "", 9),
    ] {
        let host = Destination::parse(host).unwrap();
        let entry = AllowedHosts::entry(scheme, &host, port);
        let hosts = AllowedHosts::parse(std::slice::from_ref(&entry)).unwrap();
        assert!(hosts.allows(scheme, &host, port), "{entry}");
    }
    let own = ["http://self", "http://*.spin.internal", "http://a.spin.internal"];
    assert!(own.iter().all(|entry| AllowedHost::parse(entry).unwrap().is_own()));
    assert!(!AllowedHost::parse("http://spin.internal").unwrap().is_own());
    assert!(!AllowedHost::parse("*://*:*").unwrap().is_own());
    assert_eq!(Destination::parse("a.spin.internal").unwrap().chained(), Some("a"));
}

#[test]
fn an_entry_covers_what_it_allows_and_no_more() {
    let check = |entry: &str, other: &str, expected: bool| {
        let parse = |entry: &str| AllowedHost::parse(entry).unwrap();
        assert_eq!(parse(entry).covers(&parse(other)), expected, "{entry} and {other}");
    };
    check("*://*:*", "https://example.com", true);
    check("*://*:*", "http://self", true);
    check("https://example.com", "https://EXAMPLE.com:443", true);
    check("https://example.com", "*://example.com:443", false);
    check("https://example.com", "https://example.com:*", false);
    check("https://example.com:*", "https://example.com:80..90", true);
    check("https://a.b:80..90", "https://a.b:85..90", true);
    check("https://a.b:80..90", "https://a.b:85..91", false);
    check("https://a.b:80", "https://a.b:80..81", true);
    check("https://a.b:80..90", "https://a.b:90", false);
    check("https://*.example.com", "https://a.example.com", true);
    check("https://*.example.com", "https://*.a.example.com", true);
    check("https://*.example.com", "https://*.example.com", true);
    check("https://*.example.com", "https://example.com", false);
    check("https://*.example.com", "https://badexample.com", false);
    check("https://*.a.example.com", "https://*.example.com", false);
    check("http://10.0.0.0/8:80", "http://10.1.0.0/16:80", true);
    check("http://10.1.0.0/16:80", "http://10.1.2.3", true);
    check("http://10.1.2.3", "http://10.1.0.0/16:80", false);
    check("http://10.0.0.0/8:80", "http://example.com", false);
    check("https://example.com", "https://*", false);
}
