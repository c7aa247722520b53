//! The operators of a decoder that are no matrix products, each as its paper defines it.

use super::matrix::Matrix;

/// RMSNorm of each row: `x_i / sqrt(mean(x^2) + epsilon) * gamma_i`.
///
/// Zhang and Sennrich, *Root Mean Square Layer Normalization* (2019), equation 4. Epsilon stands
/// inside of the root, as in the models' own code.
pub fn rms_norm(x: &Matrix, gamma: &[f32], epsilon: f32) -> Matrix {
    let mut normal = x.clone();
    normal.for_each_row(|_, row| {
        let squares: f32 = row.iter().map(|x| x * x).sum();
        let root = (squares / row.len() as f32 + epsilon).sqrt();
        for (x, gamma) in row.iter_mut().zip(gamma) {
            *x = *x / root * gamma;
        }
    });
    normal
}

/// SiLU, also called Swish: `x * sigmoid(x) = x / (1 + e^-x)`.
///
/// Elfwing, Uchibe and Doya, *Sigmoid-Weighted Linear Units* (2017), equation 4.
pub fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// Softmax: `e^(x_i - max) / sum_j e^(x_j - max)`. The maximum keeps every power at most 1.
pub fn softmax(x: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for x in &mut *x {
        *x = (*x - max).exp();
        sum += *x;
    }
    for x in x {
        *x /= sum;
    }
}

/// Rotary embedding of one head at one position, whose values `2i` and `2i + 1` are a pair: each
/// pair turns by its angle, of which `cos` and `sin` hold the cosine and the sine.
///
/// Su et al., *RoFormer: Enhanced Transformer with Rotary Position Embedding* (2021), equation 34.
pub fn rotate_interleaved(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (pairs, _) = head.as_chunks_mut::<2>();
    for ([a, b], (cos, sin)) in pairs.iter_mut().zip(cos.iter().zip(sin)) {
        (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
    }
}

/// The same, but the values `i` and `i + half` are a pair: the layout of GPT-NeoX.
pub fn rotate_half_split(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = head.split_at_mut(head.len() / 2);
    for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
        (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
    }
}
