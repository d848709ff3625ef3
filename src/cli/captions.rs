//! The captions of a file, for the commands that take one.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;

use crate::wire::pointer::{Found, Pointer};

/// Where captions come from.
#[derive(Debug, Args)]
pub struct InputArgs {
    /// The captions, one a line; `-` is standard input.
    #[arg(value_name = "FILE", default_value = "-")]
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
}

/// The captions of a file, in order.
pub struct Captions {
    lines: io::Split<Box<dyn BufRead + Send>>,
    pointer: Option<Pointer>,
    name: String,
    number: usize,
}

impl Captions {
    /// Opens the file, `-` for standard input, of captions or of JSON with captions at `pointer`.
    ///
    /// # Errors
    ///
    /// When it can't be opened.
    pub fn open(file: &Path, pointer: Option<Pointer>) -> anyhow::Result<Captions> {
        let name = file.display().to_string();
        let reader: Box<dyn BufRead + Send> = if file == Path::new("-") {
            Box::new(BufReader::new(io::stdin()))
        } else {
            Box::new(BufReader::new(File::open(file).with_context(|| name.clone())?))
        };
        Ok(Captions { lines: reader.split(b'\n'), pointer, name, number: 0 })
    }

    fn caption(&self, mut line: Vec<u8>) -> anyhow::Result<String> {
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        let line = String::from_utf8(line).map_err(|_| anyhow::anyhow!("not UTF-8"))?;
        let Some(pointer) = &self.pointer else { return Ok(line) };
        match pointer.find(&line).context("not JSON")? {
            Some(Found::Text(text)) => Ok(text.into_owned()),
            Some(Found::Integer(_)) => bail!("a number stands at {pointer}, not a caption"),
            Some(Found::Other(what)) => bail!("{what} stands at {pointer}, not a caption"),
            None => bail!("nothing stands at {pointer}"),
        }
    }
}

impl Iterator for Captions {
    type Item = anyhow::Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        let line = self.lines.next()?;
        self.number += 1;
        let caption = line.map_err(anyhow::Error::from).and_then(|line| self.caption(line));
        Some(caption.with_context(|| format!("{}, line {}", self.name, self.number)))
    }
}
