//! The bearer token of SASL's OAUTHBEARER, from a file that whoever issues tokens keeps fresh, as
//! Kubernetes does with a projected service account token.
//!
//! librdkafka asks for a token when a client starts, and again when four fifths of the token's life
//! have passed; the file is read each time. A JWT says how long it lives. Any other token is taken
//! to live for `LIFE_OF_UNKNOWN`, so that the file is looked at often enough. Nothing is verified
//! here, that is the brokers' part.

use std::borrow::Cow;
use std::error::Error;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rdkafka::client::OAuthToken;
use serde::Deserialize;
use thiserror::Error;

/// How long a token is taken to live that doesn't say so.
const LIFE_OF_UNKNOWN: Duration = Duration::from_secs(300);

/// A larger file has no token; brokers take at most half a megabyte.
const BYTES_MAX: u64 = 1 << 19;

/// Why there is no token. The token itself is in none of it.
#[derive(Debug, Error)]
pub enum BearerError {
    /// No file is named.
    #[error("OAUTHBEARER needs a token; kafka.bearer_token_file names the file that has it")]
    NoFile,
    /// The file can't be read.
    #[error("{}: {source}", shown(path))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file has nothing that could be a token.
    #[error(
        "{}: no token in it, which is one line of printable characters without spaces, {BYTES_MAX} at most",
        shown(.0)
    )]
    NoToken(PathBuf),
    /// The token's time is over.
    #[error("{}: the token has expired; whoever issues it must write a fresh one there", shown(.0))]
    Expired(PathBuf),
}

/// Returns what to call a file that is to hold a secret: by its path where that can't be the secret
/// itself, which people put in its place by mistake.
pub fn shown(path: &Path) -> Cow<'_, str> {
    let is_path = path.is_absolute() || path.starts_with(".") || path.starts_with("..");
    if is_path { path.to_string_lossy() } else { "the file that it names".into() }
}

/// The claims of a JWT that matter here.
#[derive(Debug, Default, Deserialize)]
struct Claims {
    sub: Option<String>,
    /// In seconds since 1970.
    exp: Option<f64>,
}

/// Answers librdkafka, which has the file's path from the property `sasl.oauthbearer.config`.
///
/// # Errors
///
/// When the file has no token that is still of use.
pub fn answer(file: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
    let path = file.filter(|path| !path.is_empty()).ok_or(BearerError::NoFile)?;
    Ok(token_at(Path::new(path), SystemTime::now())?)
}

/// Returns what could be the token in a file.
///
/// # Errors
///
/// When nothing could be.
pub fn read(path: &Path) -> Result<String, BearerError> {
    let mut text = String::new();
    let bytes = File::open(path)
        .and_then(|file| file.take(BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(|source| BearerError::Unreadable { path: path.into(), source })?;
    let token = text.trim();
    let is_printable = token.bytes().all(|byte| byte.is_ascii_graphic());
    if token.is_empty() || !is_printable || bytes as u64 > BYTES_MAX {
        return Err(BearerError::NoToken(path.into()));
    }
    Ok(token.into())
}

fn token_at(path: &Path, now: SystemTime) -> Result<OAuthToken, BearerError> {
    let token = read(path)?;
    let claims = claims_of(&token).unwrap_or_default();
    let now_ms = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
    let lifetime_ms = match claims.exp {
        Some(seconds) => (seconds * 1000.0) as i64,
        None => now_ms + LIFE_OF_UNKNOWN.as_millis() as i64,
    };
    if lifetime_ms <= now_ms {
        return Err(BearerError::Expired(path.into()));
    }
    let principal_name = claims.sub.unwrap_or_else(|| "capvec".into());
    Ok(OAuthToken { token, principal_name, lifetime_ms })
}

/// Returns the claims of a token that is a JWT: the middle of three parts between dots.
fn claims_of(token: &str) -> Option<Claims> {
    let mut parts = token.split('.');
    let (_header, payload, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    /// {"alg":"none"} . {"sub":"worker-7","exp":2000000000}
    const JWT: &str = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ3b3JrZXItNyIsImV4cCI6MjAwMDAwMDAwMH0.";

    #[test]
    fn a_jwt_says_whose_it_is_and_how_long_it_lives() {
        let file = file(&format!("{JWT}\n"));
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let token = token_at(file.path(), at(1_999_999_000)).unwrap();
        assert_eq!(token.token, JWT);
        assert_eq!(token.principal_name, "worker-7");
        assert_eq!(token.lifetime_ms, 2_000_000_000_000);
        let expired = token_at(file.path(), at(2_000_000_001));
        assert!(matches!(expired, Err(BearerError::Expired(_))));
    }

    #[test]
    fn any_other_token_is_looked_at_again_soon() {
        let file = file("opaque-token");
        let token = token_at(file.path(), UNIX_EPOCH).unwrap();
        assert_eq!(token.lifetime_ms, 300_000);
    }

    #[test]
    fn what_is_no_token_is_refused_without_being_shown() {
        let too_large = "secret".repeat(BYTES_MAX as usize / 6 + 1);
        for text in ["", "\n", "secret with spaces", "secret\nlines", &too_large] {
            let file = file(text);
            let said = read(file.path()).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(said.contains("no token") && !said.contains("secret"), "{said}");
        }
        assert!(matches!(read(Path::new("/none")), Err(BearerError::Unreadable { .. })));
        assert!(answer(None).is_err() && answer(Some("")).is_err());
    }
}
