//! F64 and the integers: values without blocks that are rounded when they are decoded to f32.

use crate::model::quant::{ErrorSum, NativeEncoding, QuantFormat};

/// A format of numbers of `BYTES` bytes.
pub(super) struct Wide<const BYTES: usize>(fn([u8; BYTES]) -> Number);

/// IEEE binary64.
pub(super) static F64: Wide<8> = Wide(|bytes| Number::Double(f64::from_le_bytes(bytes)));
/// Signed byte.
pub(super) static I8: Wide<1> = Wide(|bytes| Number::Integer(i8::from_le_bytes(bytes).into()));
/// Signed, 16 bits.
pub(super) static I16: Wide<2> = Wide(|bytes| Number::Integer(i16::from_le_bytes(bytes).into()));
/// Signed, 32 bits.
pub(super) static I32: Wide<4> = Wide(|bytes| Number::Integer(i32::from_le_bytes(bytes).into()));
/// Signed, 64 bits.
pub(super) static I64: Wide<8> = Wide(|bytes| Number::Integer(i64::from_le_bytes(bytes)));

/// Numbers that f32 may not hold exactly.
pub trait WideNumbers: Sync {
    /// The error of `result` against the numbers themselves, not against their f32.
    fn error(&self, bytes: &[u8], result: &[f32]) -> ErrorSum;
}

enum Number {
    Double(f64),
    Integer(i64),
}

impl Number {
    /// To nearest, ties to even.
    fn to_f32(&self) -> f32 {
        match self {
            Number::Double(number) => *number as f32,
            Number::Integer(number) => *number as f32,
        }
    }

    /// The number, and the number minus `result`.
    fn error(&self, result: f32) -> (f64, f64) {
        match self {
            Number::Double(number) => (*number, number - f64::from(result)),
            // An f32 beyond 2^24 is an integer. Below, f64 holds both numbers and their difference.
            Number::Integer(number) if result.abs() < 16_777_216.0 => {
                (*number as f64, *number as f64 - f64::from(result))
            }
            Number::Integer(number) => {
                let error = i128::from(*number) - result as i128;
                (*number as f64, error as f64)
            }
        }
    }
}

impl<const BYTES: usize> QuantFormat for Wide<BYTES> {
    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        for (out, bytes) in out.iter_mut().zip(blocks.as_chunks().0) {
            *out = (self.0)(*bytes).to_f32();
        }
    }

    fn native_encoding(&'static self) -> NativeEncoding {
        NativeEncoding::Wide(self)
    }
}

impl<const BYTES: usize> WideNumbers for Wide<BYTES> {
    fn error(&self, bytes: &[u8], result: &[f32]) -> ErrorSum {
        let mut sum = ErrorSum::default();
        for (bytes, result) in bytes.as_chunks().0.iter().zip(result) {
            let (number, error) = (self.0)(*bytes).error(*result);
            sum.add(number, error);
        }
        sum
    }
}
