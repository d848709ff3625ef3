//! The captions of a file, for the commands that take one.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, ensure};
use clap::Args;
use serde::de::IgnoredAny;

use crate::cli::tell;
use crate::wire::caption::{CaptionDecoder, CaptionFormat};
use crate::wire::pointer::Pointer;

/// Where captions come from.
#[derive(Debug, Args)]
pub struct InputArgs {
    /// The captions, one a line; `-` is standard input.
    #[arg(value_name = "CAPTIONS", default_value = "-")]
    file: PathBuf,
    /// Lines are JSON with the caption at this JSON Pointer, such as /caption.
    #[arg(long, value_name = "POINTER")]
    pointer: Option<Pointer>,
}

impl InputArgs {
    /// Opens the file.
    ///
    /// # Errors
    ///
    /// When it can't be opened.
    pub fn open(&self) -> anyhow::Result<Captions> {
        Captions::open(&self.file, self.pointer.clone())
    }

    /// Returns whether the captions are in the very file at `path`, by whatever name, so that a
    /// result there would replace them.
    pub fn are_in(&self, path: &Path) -> bool {
        let file = if is_stdin(&self.file) { Path::new("/dev/stdin") } else { &self.file };
        match (fs::metadata(file), fs::metadata(path)) {
            (Ok(file), Ok(there)) => {
                there.is_file() && (file.dev(), file.ino()) == (there.dev(), there.ino())
            }
            _ => false,
        }
    }
}

fn is_stdin(file: &Path) -> bool {
    file == Path::new("-")
}

/// The captions of a file, in order.
pub struct Captions {
    lines: io::Split<Box<dyn BufRead + Send>>,
    decoder: CaptionDecoder,
    name: String,
    number: usize,
}

impl Captions {
    /// Opens the file, `-` for standard input, of captions or of JSON with captions at `pointer`.
    ///
    /// # Errors
    ///
    /// When it can't be opened, or is a folder.
    pub fn open(file: &Path, pointer: Option<Pointer>) -> anyhow::Result<Captions> {
        let (name, reader): (String, Box<dyn BufRead + Send>) = if is_stdin(file) {
            ("standard input".into(), Box::new(BufReader::new(io::stdin())))
        } else {
            let name = file.display().to_string();
            ensure!(!file.is_dir(), "{name} is a folder; a file of captions is due");
            let opened = File::open(file).with_context(|| name.clone())?;
            (name, Box::new(BufReader::new(opened)))
        };
        let format = match pointer {
            Some(pointer) => CaptionFormat::Json { pointer },
            None => CaptionFormat::Text,
        };
        let decoder = CaptionDecoder { format, id_pointer: None, caption_bytes_max: usize::MAX };
        Ok(Captions { lines: reader.split(b'\n'), decoder, name, number: 0 })
    }

    fn caption(&self, line: &[u8]) -> anyhow::Result<String> {
        // As programs on Windows write it: a mark of the byte order, and lines that end with two.
        let marked = line.strip_prefix("\u{feff}".as_bytes()).filter(|_| self.number == 1);
        let line = marked.unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let caption = self.decoder.decode(line).map_err(|rejection| anyhow!(rejection.detail))?;
        Ok(caption.text.into_owned())
    }
}

/// Returns whether a line is a JSON object, which hardly anybody means as a caption.
fn is_object(line: &str) -> bool {
    line.starts_with('{') && serde_json::from_str::<IgnoredAny>(line).is_ok()
}

impl Iterator for Captions {
    type Item = anyhow::Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        let line = self.lines.next()?;
        self.number += 1;
        let caption = line.map_err(anyhow::Error::from).and_then(|line| self.caption(&line));
        if let Ok(text) = &caption
            && self.number == 1
            && self.decoder.format == CaptionFormat::Text
            && is_object(text)
        {
            tell(format_args!(
                "{}, line 1, is JSON, and all of it is taken for the caption; --pointer /caption would \
                 take what stands there",
                self.name
            ));
        }
        Some(caption.with_context(|| format!("{}, line {}", self.name, self.number)))
    }
}
