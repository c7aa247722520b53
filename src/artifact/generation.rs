//! The output of `generate`: Genie's answer to the reference's prompt.

use serde::{Deserialize, Serialize};

/// The stage's only part.
pub const GENERATION: &str = "generation.json";

/// `generation.json`: Genie's answer to the prompt, and the reference's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// The prompt's tokens; the reference's and Genie's own tokenizer agree on them.
    pub prompt: Vec<u32>,
    /// The tokens that Genie answered.
    pub tokens: Vec<u32>,
    /// Those as text, by Genie's own tokenizer; empty if they end inside a character.
    pub text: String,
    /// The reference's answer, up to the same number of tokens or the token that ends a text.
    pub expected: Vec<u32>,
    /// Whether that is its whole answer: a token follows that ends it.
    pub ended: bool,
    /// That as text.
    pub expected_text: String,
}

impl Generation {
    /// Number of leading tokens that equal the reference's. Ending where the reference ends counts
    /// as one more.
    pub fn equal(&self) -> usize {
        let mut same = 0;
        for (token, expected) in self.tokens.iter().zip(&self.expected) {
            if token != expected {
                break;
            }
            same += 1;
        }
        same + usize::from(self.ended && self.tokens == self.expected)
    }

    /// The largest number that [`Generation::equal`] can return.
    pub fn all(&self) -> usize {
        self.expected.len() + usize::from(self.ended)
    }
}
