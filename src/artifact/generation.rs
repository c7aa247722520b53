//! What `generate` hands over.

use serde::{Deserialize, Serialize};

/// The stage's only part.
pub const GENERATION: &str = "generation.json";

/// `generation.json`: what Genie says where the reference said what it did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// The prompt's tokens: the reference's, and what Genie's own tokenizer makes of their text.
    pub prompt: Vec<u32>,
    /// The tokens that Genie answered.
    pub tokens: Vec<u32>,
    /// Those as text, by Genie's own tokenizer; nothing if they end inside a character.
    pub text: String,
    /// What the reference says up to as many tokens, or to the one that ends a text.
    pub expected: Vec<u32>,
    /// Whether that is its whole answer, after which a token comes that ends it.
    pub ended: bool,
    /// That as text.
    pub expected_text: String,
}

impl Generation {
    /// How many tokens from the first on are the reference's. To end where the reference does
    /// counts as one.
    pub fn equal(&self) -> usize {
        let same = self
            .tokens
            .iter()
            .zip(&self.expected)
            .take_while(|(own, expected)| own == expected)
            .count();
        same + usize::from(self.ended && self.tokens == self.expected)
    }

    /// How many tokens there are to be equal.
    pub fn all(&self) -> usize {
        self.expected.len() + usize::from(self.ended)
    }
}
