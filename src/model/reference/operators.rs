//! The operators of a decoder other than matrix products, as their papers define them.

use super::matrix::Matrix;

/// RMSNorm of each run of `gamma.len()` values of each row: `x_i / sqrt(mean(x^2) + epsilon) *
/// gamma_i`.
///
/// Zhang and Sennrich, *Root Mean Square Layer Normalization* (2019), equation 4. Epsilon is inside
/// of the root, as in the code of the models.
pub(super) fn rms_norm(x: &Matrix, gamma: &[f32], epsilon: f32) -> Matrix {
    let mut normal = x.clone();
    normal.for_each_row(|_, row| {
        for run in row.chunks_mut(gamma.len().max(1)) {
            let mut squares: f32 = 0.0;
            for x in &*run {
                squares += x * x;
            }
            let root = (squares / run.len() as f32 + epsilon).sqrt();
            for (x, gamma) in run.iter_mut().zip(gamma) {
                *x = *x / root * gamma;
            }
        }
    });
    normal
}

/// SiLU, also called Swish: `x * sigmoid(x) = x / (1 + e^-x)`.
///
/// Elfwing, Uchibe and Doya, *Sigmoid-Weighted Linear Units* (2017), equation 4.
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// GELU by its approximation with tanh, which the models that kiln reads were trained with.
///
/// Hendrycks and Gimpel, *Gaussian Error Linear Units* (2016), section 2.
pub(super) fn gelu_tanh(x: f32) -> f32 {
    let root = std::f32::consts::FRAC_2_PI.sqrt();
    0.5 * x * (1.0 + (root * (x + 0.044715 * x * x * x)).tanh())
}

/// `cap * tanh(x / cap)`, or `x` without a cap.
///
/// *Gemma 2: Improving Open Language Models at a Practical Size* (2024), section 2.
pub(super) fn soft_cap(x: f32, cap: Option<f32>) -> f32 {
    match cap {
        Some(cap) => cap * (x / cap).tanh(),
        None => x,
    }
}

/// Softmax: `e^(x_i - max) / sum_j e^(x_j - max)`. The maximum keeps every power at most 1.
pub(super) fn softmax(x: &mut [f32]) {
    let mut max = f32::NEG_INFINITY;
    for x in &*x {
        max = max.max(*x);
    }
    let mut sum = 0.0;
    for x in &mut *x {
        *x = (*x - max).exp();
        sum += *x;
    }
    for x in x {
        *x /= sum;
    }
}

/// Rotary embedding of one head at one position. The values `2i` and `2i + 1` are a pair, which is
/// rotated by the angle with cosine `cos[i]` and sine `sin[i]`.
///
/// Su et al., *RoFormer: Enhanced Transformer with Rotary Position Embedding* (2021), equation 34.
pub(super) fn rotate_interleaved(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (pairs, _) = head.as_chunks_mut::<2>();
    for (i, [a, b]) in pairs.iter_mut().enumerate() {
        (*a, *b) = (*a * cos[i] - *b * sin[i], *a * sin[i] + *b * cos[i]);
    }
}

/// The same, but the values `i` and `i + half` are a pair: the layout of GPT-NeoX.
pub(super) fn rotate_half_split(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = head.split_at_mut(head.len() / 2);
    for (i, a) in first.iter_mut().enumerate() {
        let b = &mut second[i];
        (*a, *b) = (*a * cos[i] - *b * sin[i], *a * sin[i] + *b * cos[i]);
    }
}
