//! The worker's decode-and-tokenize threads.
//!
//! Each takes chunks of messages from one shared queue, so they overtake each other; the sink
//! restores the order.

use std::time::Instant;

use prometheus::Histogram;

use super::{TokenizedCaption, Tokenizer, TokenizerError, Words};
use crate::config::OnEmpty;
use crate::handover::{Finished, PreparedCaption};
use crate::metrics::TokenizeMetrics;
use crate::queue::{Closed, QueueReceiver, QueueSender};
use crate::tracked::{RejectReason, Rejection, Tracked};
use crate::wire::caption::CaptionDecoder;

/// The stage of one thread.
pub struct TokenizeTask {
    /// Messages from the source.
    pub input: QueueReceiver<Vec<Tracked<()>>>,
    /// Captions for the batcher.
    pub out: QueueSender<Vec<Tracked<PreparedCaption>>>,
    /// What goes around the network: rejections, tombstones, and what is abandoned.
    pub around: QueueSender<Finished>,
    /// Reads captions out of messages.
    pub decoder: CaptionDecoder,
    /// Makes tokens of them.
    pub tokenizer: Tokenizer,
    /// The words that this thread has seen.
    pub words: Words,
    /// What becomes of captions without text.
    pub on_empty: OnEmpty,
    /// Whether the text is kept for the output.
    pub keep_text: bool,
    /// Counts.
    pub metrics: TokenizeMetrics,
    /// Seconds from when a caption was received.
    pub seconds: Histogram,
}

impl TokenizeTask {
    /// Runs until its queue is closed and empty.
    ///
    /// # Errors
    ///
    /// When a stage behind it has ended.
    pub fn run(mut self) -> Result<(), Closed> {
        while let Some(chunk) = self.input.recv() {
            let mut captions = Vec::with_capacity(chunk.len());
            for message in chunk {
                captions.extend(self.take(message)?);
            }
            if !captions.is_empty() {
                self.out.send(captions)?;
            }
        }
        Ok(())
    }

    /// Returns the message as a caption, or sends it around the network.
    fn take(&mut self, message: Tracked<()>) -> Result<Option<Tracked<PreparedCaption>>, Closed> {
        if message.origin.assignment.is_leaving() {
            self.around.send(Finished::Abandoned(message))?;
            return Ok(None);
        }
        let Some(value) = message.origin.message.value.as_deref() else {
            self.around.send(Finished::Tombstone(message))?;
            return Ok(None);
        };
        match self.prepare(value) {
            Ok(caption) => {
                self.metrics.captions.inc();
                self.metrics.tokens.inc_by(caption.tokens.ids.len() as u64);
                self.metrics.truncated.inc_by(u64::from(caption.tokens.truncated));
                let waited_too = caption.ready - message.origin.received;
                self.seconds.observe(waited_too.as_secs_f64());
                Ok(Some(message.map(|()| caption)))
            }
            Err(rejection) => {
                self.around.send(Finished::Rejected(message.map(|()| rejection)))?;
                Ok(None)
            }
        }
    }

    fn prepare(&mut self, value: &[u8]) -> Result<PreparedCaption, Rejection> {
        let caption = self.decoder.decode(value)?;
        let tokenized = self.tokenizer.tokenize_with(&mut self.words, &caption.text);
        let tokens = accept(tokenized, self.on_empty)?;
        let text = if self.keep_text { caption.text.into_owned() } else { String::new() };
        Ok(PreparedCaption { tokens, text, id: caption.id, ready: Instant::now() })
    }
}

/// Returns the tokens of a caption that goes to the network.
///
/// # Errors
///
/// With the rejection of one that has no tokens, or no text.
pub fn accept(
    tokenized: Result<TokenizedCaption, TokenizerError>,
    on_empty: OnEmpty,
) -> Result<TokenizedCaption, Rejection> {
    let tokens =
        tokenized.map_err(|e| Rejection::new(RejectReason::NotTokenized, e.to_string()))?;
    if tokens.is_empty() && on_empty == OnEmpty::Reject {
        let detail = "the caption has no text for the network";
        return Err(Rejection::new(RejectReason::CaptionEmpty, detail));
    }
    Ok(tokens)
}
