//! `capvec embed`: what it takes and writes, and what is left where it is interrupted.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{CAPVEC, capvec, capvec_fails, capvec_ok, eventually, text, tiny_package};

#[test]
fn embed_takes_lines_and_json_lines_and_writes_three_formats() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    std::fs::write(file("lines"), "Älgen är skogens konung!\r\n\nWie leben Eisbären?\n").unwrap();
    std::fs::write(
        file("json"),
        "{\"c\": \"Älgen är skogens konung!\"}\n{\"c\": \"\"}\n{\"c\": \"Wie leben Eisbären?\"}\n",
    )
    .unwrap();
    let embed = |input: &str, format: &str, more: &[&str]| {
        let out = file(&format!("{input}.{format}"));
        let input = file(input);
        let package = text(tiny_package());
        let mut args = vec![
            "embed",
            "--model",
            package,
            text(&input),
            "--format",
            format,
            "--out",
            text(&out),
        ];
        args.extend(more);
        capvec_ok(&args);
        std::fs::read(out).unwrap()
    };
    let raw = embed("lines", "f32", &[]);
    assert_eq!(raw.len(), 3 * 640 * 4, "an empty caption is a row too");
    assert_eq!(embed("json", "f32", &["--pointer", "/c"]), raw, "the same captions");
    // As programs on Windows write it, with a mark of the byte order.
    let json = std::fs::read_to_string(file("json")).unwrap();
    std::fs::write(file("marked"), format!("\u{feff}{}", json.replace('\n', "\r\n"))).unwrap();
    assert_eq!(embed("marked", "f32", &["--pointer", "/c"]), raw, "the same captions");

    let npy = embed("lines", "npy", &[]);
    assert_eq!(&npy[..6], b"\x93NUMPY");
    assert!(String::from_utf8_lossy(&npy[..128]).contains("'shape': (3, 640)"));
    assert_eq!(npy[128..], raw);

    let jsonl = embed("lines", "jsonl", &[]);
    let mut numbers = Vec::new();
    for line in std::str::from_utf8(&jsonl).unwrap().lines() {
        let vector: Vec<f32> = serde_json::from_str(line).unwrap();
        assert_eq!(vector.len(), 640);
        numbers.extend(vector.iter().flat_map(|n| n.to_le_bytes()));
    }
    assert_eq!(numbers, raw, "the shortest form reads back as the same number");
}

#[test]
fn embed_does_not_replace_its_captions_by_their_vectors() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    std::fs::write(file("captions"), "a caption\n").unwrap();
    std::os::unix::fs::symlink("captions", file("link")).unwrap();
    let (package, captions) = (tiny_package(), file("captions"));
    let embed = |from: &str, to: &Path| {
        let stdin = std::fs::File::open(file("captions")).unwrap();
        Command::new(CAPVEC)
            .args(["embed", "--model", text(package), from, "--out", text(to)])
            .stdin(stdin)
            .output()
            .unwrap()
    };
    for (from, to) in [(text(&captions), "captions"), (text(&captions), "link"), ("-", "captions")]
    {
        let output = embed(from, &file(to));
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{from} to {to}: {error}");
        assert!(error.contains(" has the captions, which the vectors would replace"), "{error}");
        assert_eq!(std::fs::read_to_string(&captions).unwrap(), "a caption\n");
    }
    assert!(embed("-", &file("vectors")).status.success());
}

#[test]
fn what_the_captions_are_read_from_is_named_as_people_know_it() {
    let folder = tempfile::tempdir().unwrap();
    let package = text(tiny_package());
    let (_, error) = capvec_fails(&["tokenize", "--model", package, text(folder.path())]);
    assert!(error.contains(" is a folder; a file of captions is due"), "{error}");
    let mut child = Command::new(CAPVEC)
        .args(["tokenize", "--model", package])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"\xff\n").unwrap();
    let error = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
    assert!(error.contains("standard input, line 1: "), "{error}");
}

#[test]
fn embed_replaces_no_pipe_and_no_link() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    std::fs::write(file("captions"), "Älgen är skogens konung!\n").unwrap();
    std::fs::write(file("target"), "before").unwrap();
    std::os::unix::fs::symlink("target", file("link")).unwrap();
    let pipe = file("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let captions = file("captions");
    let embed = |out: &Path, format: &str| {
        let package = text(tiny_package());
        let out = text(out);
        capvec(&["embed", "--model", package, text(&captions), "--format", format, "--out", out])
    };
    assert!(embed(&file("link"), "f32").status.success());
    assert!(std::fs::symlink_metadata(file("link")).unwrap().is_symlink());
    let vector = std::fs::read(file("target")).unwrap();
    assert_eq!(vector.len(), 640 * 4);

    // Open for both, so that no side waits for the other; a vector fits into the pipe.
    let mut end = std::fs::File::options().read(true).write(true).open(&pipe).unwrap();
    assert!(embed(&pipe, "f32").status.success());
    assert!(std::os::unix::fs::FileTypeExt::is_fifo(
        &std::fs::metadata(&pipe).unwrap().file_type()
    ));
    let mut read = vec![0; vector.len()];
    end.read_exact(&mut read).unwrap();
    assert_eq!(read, vector);
    let refused = embed(&pipe, "npy");
    assert!(!refused.status.success());
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(error.contains("npy needs a file"), "{error}");
}

#[test]
fn a_pipe_that_nobody_reads_any_more_has_no_whole_result() {
    let folder = tempfile::tempdir().unwrap();
    let (pipe, captions) = (folder.path().join("pipe"), folder.path().join("captions"));
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // More vectors than a pipe holds.
    std::fs::write(&captions, "a caption\n".repeat(1000)).unwrap();
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::File::open(pipe).unwrap().read_exact(&mut [0; 100]).unwrap()
    });
    let package = text(tiny_package());
    let (code, error) =
        capvec_fails(&["embed", "--model", package, text(&captions), "--out", text(&pipe)]);
    reader.join().unwrap();
    assert_eq!(code, 1);
    assert!(error.contains(&format!("{}: Broken pipe", pipe.display())), "{error}");
}

#[test]
fn a_line_without_a_caption_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("captions.jsonl");
    std::fs::write(&input, "{\"caption\": \"good\"}\n{\"caption\": 3}\n").unwrap();
    let out = folder.path().join("out");
    let (code, error) = capvec_fails(&[
        "embed",
        "--model",
        text(tiny_package()),
        "--pointer",
        "/caption",
        text(&input),
        "--out",
        text(&out),
    ]);
    assert_eq!(code, 1);
    assert!(error.contains("captions.jsonl, line 2") && error.contains("a number"), "{error}");
    assert!(!out.exists(), "half a result is none");
}

/// Starts an embedding that never ends into `folder`, with hang-ups as `env` sets them, sends it
/// these signals when it has begun, and returns which one ended it.
fn interrupted(hang_ups: &str, folder: &Path, signals: &[&str]) -> Option<i32> {
    let out = folder.join("vectors.npy");
    let mut child = Command::new("env")
        .args([hang_ups, CAPVEC, "embed", "--model", text(tiny_package())])
        .args(["--format", "npy", "--out", text(&out)])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let number = || std::fs::read_dir(folder).unwrap().count();
    eventually("it has begun", || (number() == 1).then_some(()));
    for signal in signals {
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
    }
    // Waiting would close it, and the end of the captions, which comes first at times, be the end
    // of it.
    let captions = child.stdin.take();
    let status = child.wait().unwrap();
    drop(captions);
    assert_eq!(number(), 0, "{signals:?}");
    status.signal()
}

#[test]
fn an_interrupted_embed_leaves_nothing_half_written() {
    let folder = tempfile::tempdir().unwrap();
    for (signal, number) in [("INT", 2), ("TERM", 15)] {
        let ended_by = interrupted("--default-signal=HUP", folder.path(), &[signal]);
        assert_eq!(ended_by, Some(number), "as without a handler");
    }
}

#[test]
fn a_hang_up_interrupts_an_embed_unless_nohup_has_started_it() {
    let folder = tempfile::tempdir().unwrap();
    // Whoever runs the tests may ignore hang-ups.
    let ended_by = interrupted("--default-signal=HUP", folder.path(), &["HUP"]);
    assert_eq!(ended_by, Some(1), "as without a handler");
    let ended_by = interrupted("--ignore-signal=HUP", folder.path(), &["HUP", "TERM"]);
    assert_eq!(ended_by, Some(15), "it has outlived the first");
}

#[test]
fn embed_ends_with_its_reader_though_more_lines_may_come() {
    let mut child = Command::new(CAPVEC)
        .args(["embed", "--model", text(tiny_package()), "--batch-tokens", "64", "-", "--out", "-"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut lines = child.stdin.take().unwrap();
    lines.write_all("a caption\n".repeat(1000).as_bytes()).unwrap();
    let status = eventually("it ends", || child.try_wait().unwrap());
    assert!(status.success(), "{status}");
    drop(lines);
}
