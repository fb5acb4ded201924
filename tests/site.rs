//! What a site serves without counting: single pages, and the files of directories.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    fs,
    os::unix::fs::symlink,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use common::{
    COUNTED, Client, Response, SORRY, Server, Signal, Stub, WELCOME, get_request, run, serve,
};

/// A directory with a site and settings for it.
struct Site(tempfile::TempDir);

impl Site {
    /// With these files, each with its content.
    fn with(files: &[(&str, &str)]) -> Self {
        let site = Self(tempfile::tempdir().unwrap());
        files.iter().for_each(|(name, content)| site.write(name, content));
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Writes these settings, with the directory in place of `DIR`; returns the path of the file.
    fn settings(&self, text: &str) -> String {
        self.write("tallyring.toml", &text.replace("DIR", self.0.path().to_str().unwrap()));
        self.path("tallyring.toml").to_str().unwrap().to_owned()
    }

    /// A server with these settings, and the counter that it calls.
    fn serve(&self, text: &str) -> (Server, Stub) {
        let stub = Stub::answering(COUNTED);
        let config = self.settings(text);
        (serve(&["--config", &config, "--counter", &stub.url(), "--admin", "127.0.0.1:0"]), stub)
    }

    /// The exit code and output of `check` with these settings.
    fn check(&self, text: &str, flags: &[&str]) -> (i32, String) {
        let config = self.settings(text);
        let (code, output, error) = run(&[&["check", "--config", &config], flags].concat());
        (code, output + &error)
    }
}

const STATIC: &str = "[[route]]\npath = \"/static/*\"\ndirectory = \"DIR/public\"\n";

/// A request with more fields, each on a line of its own.
fn ask(client: &mut Client, method: &str, path: &str, fields: &str) -> Response {
    let fields: String = fields.lines().map(|line| format!("{line}\r\n")).collect();
    client.send(format!("{method} {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
    client.response_to(method)
}

#[track_caller]
fn check_found(client: &mut Client, path: &str, body: &str) {
    let response = client.get(path);
    assert_eq!((response.status, response.body.as_str()), (200, body), "{path}");
}

#[track_caller]
fn check_not_found(client: &mut Client, path: &str) {
    assert_eq!(client.get(path).status, 404, "{path}");
}

#[test]
fn a_page_that_is_not_counted_is_no_visit() {
    let site = Site::with(&[("robots.txt", "User-agent: *\n")]);
    // Nothing listens there: a visit would be an error.
    let config = site.settings(
        "[[route]]\npath = \"/\"\n\
         [[route]]\npath = \"/robots.txt\"\ncounted = false\npage = \"DIR/robots.txt\"\n\
         [[route]]\npath = \"/healthz\"\ncounted = false\ntext = \"ok\"\ncache = \"1h\"\n",
    );
    let flags = ["--counter", "http://127.0.0.1:1/", "--admin", "127.0.0.1:0"];
    let mut server = serve(&[&["--config", &config], &flags[..]].concat());
    let mut client = server.client();
    let robots = client.get("/robots.txt?a=b");
    assert_eq!((robots.status, robots.body.as_str()), (200, "User-agent: *\n"));
    assert_eq!(robots.field("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(robots.field("x-content-type-options"), Some("nosniff"));
    assert_eq!(robots.field("cache-control"), None);
    assert!(robots.field("etag").is_some() && robots.field("last-modified").is_some());
    let health = client.get("/healthz");
    assert_eq!((health.status, health.body.as_str()), (200, "ok"));
    assert_eq!(health.field("cache-control"), Some("max-age=3600"));
    assert_eq!(health.field("last-modified"), None);
    let head = ask(&mut client, "HEAD", "/robots.txt", "");
    assert_eq!((head.status, head.field("content-length")), (200, Some("14")));
    let tag = robots.field("etag").unwrap();
    let known = ask(&mut client, "GET", "/robots.txt", &format!("If-None-Match: {tag}"));
    assert_eq!(known.status, 304);
    // The next answer begins where the last ended.
    assert_eq!(client.get("/").body, SORRY);

    let refused = ask(&mut client, "POST", "/robots.txt", "Content-Length: 0");
    assert_eq!((refused.status, refused.field("allow")), (405, Some("GET, HEAD, OPTIONS")));
    let options = ask(&mut client, "OPTIONS", "/robots.txt", "");
    assert_eq!((options.status, options.field("allow")), (200, Some("GET, HEAD, OPTIONS")));
    let mut waits = server.client();
    let waiting = ask(&mut waits, "PUT", "/healthz", "Content-Length: 9\nExpect: 100-continue");
    assert_eq!(waiting.status, 405);

    let mut admin = server.admin();
    assert_eq!(admin.metric("tallyring_requests_uncounted_total{peer=\"client\""), 4);
    assert_eq!(admin.metric("tallyring_visits_total{outcome=\"erred\""), 1);
    drop((client, waits, admin));
    assert!(server.stop().contains("0 visits welcomed, 1 erred, 0 refused, 0 abandoned"));
}

#[test]
fn the_files_of_a_directory_are_served() {
    let site = Site::with(&[
        ("public/a.txt", "a text"),
        ("public/app.js", "let a;"),
        ("public/style.css", "a {}"),
        ("public/data.unknown", "bytes"),
        ("public/LICENSE", "do"),
        ("public/empty", ""),
        ("public/two words.txt", "two"),
        ("public/sub/deep/b.json", "{}"),
    ]);
    let (mut server, _stub) = site.serve(&format!("{STATIC}cache = \"1day\"\n"));
    assert!(server.line.contains("no route is counted"), "{}", server.line);
    let mut client = server.client();
    for (path, body, content_type) in [
        ("a.txt", "a text", "text/plain; charset=utf-8"),
        ("app.js", "let a;", "text/javascript; charset=utf-8"),
        ("style.css", "a {}", "text/css; charset=utf-8"),
        ("data.unknown", "bytes", "application/octet-stream"),
        ("LICENSE", "do", "text/plain; charset=utf-8"),
        ("empty", "", "text/plain; charset=utf-8"),
        ("two%20words.txt", "two", "text/plain; charset=utf-8"),
        ("sub/deep/b.json", "{}", "application/json"),
    ] {
        let path = format!("/static/{path}");
        let response = client.get(&path);
        assert_eq!((response.status, response.body.as_str()), (200, body), "{path}");
        assert_eq!(response.field("content-type"), Some(content_type), "{path}");
        assert_eq!(response.field("cache-control"), Some("max-age=86400"));
        assert_eq!(response.field("accept-ranges"), Some("bytes"));
        let head = ask(&mut client, "HEAD", &path, "");
        let without_date = |head: &str| {
            let lines = head.lines().filter(|line| !line.starts_with("date:"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(without_date(&head.head), without_date(&response.head), "{path}");
    }
    let refused = ask(&mut client, "POST", "/static/a.txt", "Content-Length: 0");
    assert_eq!((refused.status, refused.field("allow")), (405, Some("GET, HEAD, OPTIONS")));
    assert_eq!(ask(&mut client, "OPTIONS", "/static/a.txt", "").status, 200);
    assert_eq!(ask(&mut client, "OPTIONS", "/static/b.txt", "").status, 404);
    drop(client);
    assert!(server.stop().contains("0 visits welcomed, 0 erred"));
}

/// A directory with hidden files, links within it and links out of it.
fn site_with_links() -> Site {
    let site = Site::with(&[
        ("public/a.txt", "a"),
        ("public/sub/b.txt", "b"),
        ("public/.env", "hidden"),
        ("public/.git/config", "hidden"),
        ("secret", "secret"),
        ("secrets/c.txt", "secret"),
    ]);
    symlink("a.txt", site.path("public/inside")).unwrap();
    symlink("../secret", site.path("public/outside")).unwrap();
    symlink("../secrets", site.path("public/outsides")).unwrap();
    symlink("/etc/passwd", site.path("public/passwd")).unwrap();
    site
}

#[test]
fn no_path_leaves_the_directory() {
    let site = site_with_links();
    let (server, _stub) = site.serve(STATIC);
    let mut client = server.client();
    for (path, body) in [
        ("/static/a.txt", "a"),
        ("/static/%61.txt", "a"),
        ("/static/a%2Etxt", "a"),
        ("/static/sub/b.txt", "b"),
        ("/static/inside", "a"),
        ("http://a/static/sub/b.txt", "b"),
    ] {
        check_found(&mut client, path, body);
    }
    for path in [
        "/static/../secret",
        "/static/%2e%2e/secret",
        "/static/%2E%2E/secret",
        "/static/.%2e/secret",
        "/static/..%2fsecret",
        "/static/%2e%2e%2fsecret",
        "/static/..%5csecret",
        "/static/%252e%252e/secret",
        "/static/sub/../a.txt",
        "/static/sub/%2e%2e/a.txt",
        "/static/sub/../../secret",
        "/static/sub%2fb.txt",
        "/static/./a.txt",
        "/static//a.txt",
        "/static//etc/passwd",
        "/static/%2fetc/passwd",
        "/static/a.txt/",
        "//static/a.txt",
        "/static%2fa.txt",
        "/static/.env",
        "/static/%2eenv",
        "/static/.git/config",
        "/staticsecret",
        "/secret",
        "http://a/static/../secret",
    ] {
        check_not_found(&mut client, path);
    }
    // What no path may hold is refused before it is looked up.
    for path in ["/static/a.txt%00", "/static/..\\secret", "/static/%zz", "/static/%"] {
        assert_eq!(server.get(path).status, 400, "{path}");
    }
}

#[test]
fn links_out_of_the_directory_are_not_served() {
    let site = site_with_links();
    let (server, _stub) = site.serve(STATIC);
    let mut client = server.client();
    for path in ["/static/outside", "/static/outsides/c.txt", "/static/passwd"] {
        check_not_found(&mut client, path);
    }
    let (code, said) = site.check(STATIC, &[]);
    assert_eq!(code, 0);
    for link in ["outside", "outsides", "passwd"] {
        let note = format!("{link} is not served: the link leads out of the directory");
        assert!(said.contains(&note), "{said}");
    }
    assert!(!said.contains("inside is not served"), "{said}");
}

#[test]
fn a_directory_has_an_index_behind_its_slash() {
    let site = Site::with(&[
        ("public/index.html", "top"),
        ("public/sub/index.html", "sub"),
        ("public/two words/index.html", "two"),
        ("public/no-index/a.txt", "a"),
    ]);
    let (server, _stub) = site.serve(STATIC);
    let mut client = server.client();
    check_found(&mut client, "/static/", "top");
    check_found(&mut client, "/static/?a=b", "top");
    check_found(&mut client, "/static/sub/", "sub");
    check_found(&mut client, "/static/sub/index.html", "sub");
    for (path, location) in [
        ("/static", "/static/"),
        ("/static/sub", "/static/sub/"),
        ("/static/sub?a=b", "/static/sub/?a=b"),
        ("/static/s%75b", "/static/s%75b/"),
        ("/static/two%20words", "/static/two%20words/"),
        ("http://elsewhere/static/sub", "/static/sub/"),
    ] {
        let moved = client.get(path);
        assert_eq!((moved.status, moved.field("location")), (301, Some(location)), "{path}");
        assert_eq!(moved.field("cache-control"), None, "{path}");
        assert!(client.get(location).status == 200, "{location}");
    }
    for path in ["/static/no-index", "/static/no-index/", "/stati", "/static/sub//", "/static/su"] {
        check_not_found(&mut client, path);
    }
    let (server, _stub) = site.serve(&format!("{STATIC}cache = \"1h\"\n"));
    for path in ["/static", "/static/sub"] {
        let moved = server.get(path);
        assert_eq!((moved.status, moved.field("cache-control")), (301, Some("max-age=3600")));
    }
    // With a directory at the root, no path is taken for another host.
    let (server, _stub) = site.serve("[[route]]\npath = \"/*\"\ndirectory = \"DIR/public\"\n");
    let mut client = server.client();
    check_found(&mut client, "/", "top");
    assert_eq!(client.get("/sub").field("location"), Some("/sub/"));
    for path in ["//sub", "//elsewhere/..", "//sub/", "/%2fsub", "/.//sub"] {
        check_not_found(&mut client, path);
    }
}

#[test]
fn the_closest_route_wins() {
    let site = Site::with(&[
        ("public/a.txt", "a"),
        ("public/visit.html", "not counted"),
        ("public/img/a.txt", "hidden by the other directory"),
        ("public/page/index.html", "hidden by the visit"),
        ("images/b.txt", "b"),
    ]);
    let (mut server, _stub) = site.serve(
        "[[route]]\npath = \"/*\"\ndirectory = \"DIR/public\"\n\
         [[route]]\npath = \"/\"\n\
         [[route]]\npath = \"/visit.html\"\n\
         [[route]]\npath = \"/page/\"\n\
         [[route]]\npath = \"/img/*\"\ndirectory = \"DIR/images\"\n\
         [[route]]\npath = \"/img/c.txt\"\ncounted = false\ntext = \"c\"\n",
    );
    let mut client = server.client();
    check_found(&mut client, "/", WELCOME);
    check_found(&mut client, "/visit.html", WELCOME);
    check_found(&mut client, "/page/", WELCOME);
    check_found(&mut client, "/a.txt", "a");
    check_found(&mut client, "/img/b.txt", "b");
    check_found(&mut client, "/img/c.txt", "c");
    check_not_found(&mut client, "/img/a.txt");
    // No path leads to a file that a counted route hides.
    for path in ["/visit%2ehtml", "/%76isit.html", "/page/index.html", "/page"] {
        check_not_found(&mut client, path);
    }
    drop(client);
    assert!(server.stop().contains("3 visits welcomed, 0 erred"));
}

#[test]
fn conditions_are_met() {
    let site = Site::with(&[("public/a.txt", "0123456789")]);
    let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
    let file = fs::File::options().append(true).open(site.path("public/a.txt")).unwrap();
    file.set_modified(modified).unwrap();
    let (server, _stub) = site.serve(&format!("{STATIC}cache = \"1h\"\n"));
    let mut client = server.client();
    let whole = client.get("/static/a.txt");
    let tag = whole.field("etag").unwrap().to_owned();
    assert_eq!(whole.field("last-modified"), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
    let before = "Sun, 06 Nov 1994 08:49:36 GMT";
    let since = "Sun, 06 Nov 1994 08:49:37 GMT";
    for method in ["GET", "HEAD"] {
        for (fields, status) in [
            (format!("If-None-Match: {tag}"), 304),
            (format!("If-None-Match: \"x\", W/{tag}"), 304),
            (format!("If-None-Match: \"x\"\nIf-None-Match: {tag}"), 304),
            (String::from("If-None-Match: *"), 304),
            (String::from("If-None-Match: \"x\""), 200),
            (format!("If-Modified-Since: {since}"), 304),
            (format!("If-Modified-Since: {before}"), 200),
            (format!("If-Modified-Since: {since}\nIf-None-Match: \"x\""), 200),
            (format!("If-Match: {tag}"), 200),
            (String::from("If-Match: \"x\""), 412),
            (format!("If-Match: W/{tag}"), 412),
            (format!("If-Unmodified-Since: {since}"), 200),
            (format!("If-Unmodified-Since: {before}"), 412),
        ] {
            let response = ask(&mut client, method, "/static/a.txt", &fields);
            assert_eq!(response.status, status, "{method} {fields}");
            if status == 304 {
                // RFC 9110 section 15.4.5: what caches need, and no length of another content.
                assert_eq!(response.field("etag"), Some(tag.as_str()), "{fields}");
                assert_eq!(response.field("cache-control"), Some("max-age=3600"));
                assert!(response.field("date").is_some());
                for name in ["content-length", "content-type", "transfer-encoding"] {
                    assert_eq!(response.field(name), None, "{fields}");
                }
            }
        }
    }
}

#[test]
fn a_part_is_sent() {
    let site = Site::with(&[("public/a.txt", "0123456789"), ("public/empty", "")]);
    site.write("public/large.txt", &"0123456789".repeat(100_000));
    let (server, _stub) = site.serve(STATIC);
    let mut client = server.client();
    let tag = client.get("/static/a.txt").field("etag").unwrap().to_owned();
    for (fields, status, range, body) in [
        ("Range: bytes=0-0", 206, Some("bytes 0-0/10"), "0"),
        ("Range: bytes=2-4", 206, Some("bytes 2-4/10"), "234"),
        ("Range: bytes=8-", 206, Some("bytes 8-9/10"), "89"),
        ("Range: bytes=-3", 206, Some("bytes 7-9/10"), "789"),
        ("Range: bytes=-100", 206, Some("bytes 0-9/10"), "0123456789"),
        ("Range: bytes=5-100", 206, Some("bytes 5-9/10"), "56789"),
        (&format!("Range: bytes=2-4\nIf-Range: {tag}"), 206, Some("bytes 2-4/10"), "234"),
        ("Range: bytes=2-4\nIf-Range: \"x\"", 200, None, "0123456789"),
        ("Range: bytes=0-1,4-5", 200, None, "0123456789"),
        ("Range: bytes=4-2", 200, None, "0123456789"),
        ("Range: lines=0-1", 200, None, "0123456789"),
        ("Range: bytes=10-", 416, Some("bytes */10"), "it has no such part\n"),
        ("Range: bytes=-0", 416, Some("bytes */10"), "it has no such part\n"),
    ] {
        let response = ask(&mut client, "GET", "/static/a.txt", fields);
        assert_eq!((response.status, response.body.as_str()), (status, body), "{fields}");
        assert_eq!(response.field("content-range"), range, "{fields}");
        assert_eq!(response.field("content-length"), Some(body.len().to_string().as_str()));
        if status == 206 {
            assert_eq!(response.field("etag"), Some(tag.as_str()), "{fields}");
            assert_eq!(response.field("content-type"), Some("text/plain; charset=utf-8"));
        }
    }
    let head = ask(&mut client, "HEAD", "/static/a.txt", "Range: bytes=2-4");
    assert_eq!((head.status, head.field("content-length")), (200, Some("10")));
    assert_eq!(ask(&mut client, "GET", "/static/empty", "Range: bytes=0-").status, 416);
    assert_eq!(ask(&mut client, "GET", "/static/empty", "Range: bytes=-1").status, 200);
    // A part that is large enough to be written without a copy, among other answers.
    let part =
        get_request("/static/large.txt").replace("\r\n\r\n", "\r\nRange: bytes=5-500004\r\n\r\n");
    client.send(
        [&part, &get_request("/static/a.txt"), &part, &get_request("/static/large.txt")]
            .map(String::as_str)
            .concat(),
    );
    let large = client.response();
    assert_eq!(large.field("content-range"), Some("bytes 5-500004/1000000"));
    assert!(large.body.len() == 500_000 && large.body.starts_with("5678901"));
    assert_eq!(client.response().body, "0123456789");
    assert!(client.response().body == large.body);
    assert_eq!(client.response().body.len(), 1_000_000);
}

#[test]
fn files_are_read_again_on_sighup() {
    let site =
        Site::with(&[("public/a.txt", "old"), ("public/goes.txt", "goes"), ("robots.txt", "old")]);
    let (server, _stub) = site.serve(&format!(
        "{STATIC}[[route]]\npath = \"/robots.txt\"\ncounted = false\npage = \"DIR/robots.txt\"\n"
    ));
    let mut client = server.client();
    check_found(&mut client, "/static/a.txt", "old");
    site.write("public/a.txt", "new");
    site.write("public/comes.txt", "comes");
    site.write("robots.txt", "new");
    fs::remove_file(site.path("public/goes.txt")).unwrap();
    symlink("/etc/passwd", site.path("public/passwd")).unwrap();
    // Nothing changes without SIGHUP.
    check_found(&mut client, "/static/a.txt", "old");
    check_found(&mut client, "/static/goes.txt", "goes");
    check_not_found(&mut client, "/static/comes.txt");
    server.signal(Signal::HUP);
    server.wait_for_line("passwd is not served: the link leads out");
    server.wait_for_line("read anew");
    check_found(&mut client, "/static/a.txt", "new");
    check_found(&mut client, "/static/comes.txt", "comes");
    check_found(&mut client, "/robots.txt", "new");
    check_not_found(&mut client, "/static/goes.txt");
    // A file that cannot be read changes nothing.
    site.write("public/a.txt", "newer");
    fs::remove_file(site.path("robots.txt")).unwrap();
    server.signal(Signal::HUP);
    let line = server.wait_for_line("stay as they were: ");
    assert!(line.contains("route \"/robots.txt\": page: cannot read"), "{line}");
    check_found(&mut client, "/static/a.txt", "new");
    check_found(&mut client, "/robots.txt", "new");
}

#[test]
fn directories_have_a_limit_together() {
    let site = Site::with(&[]);
    for name in ["one/a.txt", "one/b.txt", "other/c.txt"] {
        site.write(name, &"x".repeat(1024));
    }
    let both = "[[route]]\npath = \"/one/*\"\ndirectory = \"DIR/one\"\n\
                [[route]]\npath = \"/other/*\"\ndirectory = \"DIR/other\"\n";
    assert_eq!(site.check(both, &["--files-max", "3KiB"]).0, 0);
    let (code, said) = site.check(both, &["--files-max", "3071"]);
    assert_eq!(code, 2, "{said}");
    for words in
        ["route \"/other/*\": directory:", "other has 1024 bytes in 1 file", "files-max, 3071"]
    {
        assert!(said.contains(words), "{said}");
    }
    let (code, said) = site.check(both, &["--files-max", "2047"]);
    assert!(code == 2 && said.contains("one has 2048 bytes in 2 files"), "{said}");
    let (code, said) = site.check(&format!("files-max = 1024\n{both}"), &[]);
    assert!(code == 2 && said.contains("files-max, 1KiB"), "{said}");
}

#[test]
fn check_shows_what_each_route_is() {
    let site = Site::with(&[("public/a.txt", "12345"), ("public/sub/b.txt", "1"), ("r.txt", "1")]);
    let (code, said) = site.check(
        &format!(
            "{STATIC}cache = \"1h\"\n\
             [[route]]\npath = \"/robots.txt\"\ncounted = false\npage = \"DIR/r.txt\"\n\
             [[route]]\npath = \"/healthz\"\ncounted = false\ntext = \"ok\"\n"
        ),
        &[],
    );
    assert_eq!(code, 0, "{said}");
    let directory = site.0.path().display();
    for words in [
        format!("not counted; 2 files of {directory}/public, 6 bytes; cached for 1h  (file "),
        format!("not counted; {directory}/r.txt, 1 byte  (file "),
        String::from("not counted; the text \"ok\", 2 bytes  (file "),
        String::from("files-max "),
    ] {
        assert!(said.contains(&words), "no {words:?} in {said}");
    }
}

#[test]
fn keys_that_do_not_fit_a_route_are_refused() {
    let site = Site::with(&[("public/a.txt", "a"), ("a.txt", "a")]);
    let check = |table: &str, words: Option<&str>| {
        let (code, said) = site.check(&format!("[[route]]\n{table}\n"), &[]);
        match words {
            None => assert_eq!(code, 0, "{table}: {said}"),
            Some(words) => assert!(code == 2 && said.contains(words), "{table}: {said}"),
        }
    };
    let page = "path = \"/a\"\ncounted = false\npage = \"DIR/a.txt\"\n";
    check(page, None);
    check("path = \"/a\"\ncounted = false\ntext = \"\"\ncache = \"0s\"", None);
    check("path = \"/a\"\ncounted = true", None);
    check("path = \"/a/*\"\ndirectory = \"DIR/public\"", None);
    check("path = \"/a/*\"\ndirectory = \"DIR/public\"\ncounted = false", None);
    check("path = \"/a*\"", None);
    for (key, words) in [
        ("welcome = \"a\"", "welcome: this route is not counted: page = "),
        ("sorry = \"a\"", "sorry: this route is not counted"),
        ("counter = \"http://a/\"", "counter: this route is not counted: nothing is registered"),
        ("methods = [\"GET\"]", "methods: this route is not counted: it takes GET and HEAD"),
        ("text = \"a\"", "text: it and page exclude each other"),
        ("cache = \"soon\"", "it must be a time like 0s, 10m, 1h or 30days"),
        ("cache = \"500ms\"", "whole seconds"),
    ] {
        check(&format!("{page}{key}"), Some(words));
    }
    let directory = "path = \"/a/*\"\ndirectory = \"DIR/public\"\n";
    for (key, words) in [
        ("counted = true", "counted: files of a directory are not counted"),
        ("page = \"a\"", "page: the files of the directory are what is served"),
        ("methods = [\"GET\"]", "methods: this route is not counted"),
        ("welcome = \"a\"", "welcome: this route is not counted"),
    ] {
        check(&format!("{directory}{key}"), Some(words));
    }
    for (table, words) in [
        ("path = \"/a\"\ncounted = false", "needs page = \"FILE\" or text = \"TEXT\""),
        ("path = \"/a\"\npage = \"a\"", "page: it is for routes with counted = false"),
        ("path = \"/a\"\ntext = \"a\"", "text: it is for routes with counted = false"),
        ("path = \"/a\"\ncache = \"1h\"", "cache: it is for routes with counted = false"),
        ("path = \"/a/*\"", "path: one that ends in /* is for the files of a directory"),
        ("path = \"/a\"\ndirectory = \"DIR/public\"", "path: that of a directory must end in /*"),
        ("path = \"//a/*\"\ndirectory = \"DIR/public\"", "and have no // in it"),
        ("path = \"/a/*\"\ndirectory = \"DIR/none\"", "directory: cannot read"),
        ("path = \"/a/*\"\ndirectory = \"DIR/a.txt\"", "directory: cannot read"),
        ("path = \"/a\"\ncounted = false\npage = \"DIR/none\"", "page: cannot read"),
        ("path = \"/a\"\ncounted = false\npage = \"DIR\"", "page: cannot read"),
    ] {
        check(table, Some(words));
    }
}
