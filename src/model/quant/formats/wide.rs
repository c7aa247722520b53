//! F64 and the integers: each value stands for itself, but a single, which is what kiln decodes to,
//! may have to round it.

use crate::model::quant::{ErrorSum, NativeEncoding, QuantFormat};

/// Numbers of `BYTES` bytes.
pub(super) struct Wide<const BYTES: usize>(fn([u8; BYTES]) -> Number);

/// IEEE double.
pub(super) static F64: Wide<8> = Wide(|bytes| Number::Double(f64::from_le_bytes(bytes)));
/// Signed byte.
pub(super) static I8: Wide<1> = Wide(|bytes| Number::Integer(i8::from_le_bytes(bytes).into()));
/// Signed, 16 bits.
pub(super) static I16: Wide<2> = Wide(|bytes| Number::Integer(i16::from_le_bytes(bytes).into()));
/// Signed, 32 bits.
pub(super) static I32: Wide<4> = Wide(|bytes| Number::Integer(i32::from_le_bytes(bytes).into()));
/// Signed, 64 bits.
pub(super) static I64: Wide<8> = Wide(|bytes| Number::Integer(i64::from_le_bytes(bytes)));

/// Numbers that a single may not hold.
pub trait WideNumbers: Sync {
    /// How far `result` is from the numbers themselves, not from what they are decoded to.
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

    /// The number, and by how much `single` falls short of it.
    fn shortfall(&self, single: f32) -> (f64, f64) {
        match self {
            Number::Double(number) => (*number, number - f64::from(single)),
            // A single beyond 2^24 is an integer; below, both are doubles, and so is their
            // difference.
            Number::Integer(number) if single.abs() < 16_777_216.0 => {
                (*number as f64, *number as f64 - f64::from(single))
            }
            Number::Integer(number) => (
                *number as f64,
                (i128::from(*number) - single as i128) as f64,
            ),
        }
    }
}

impl<const BYTES: usize> QuantFormat for Wide<BYTES> {
    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        out.iter_mut()
            .zip(blocks.as_chunks().0)
            .for_each(|(out, bytes)| *out = (self.0)(*bytes).to_f32());
    }

    fn native_encoding(&'static self) -> NativeEncoding {
        NativeEncoding::Wide(self)
    }
}

impl<const BYTES: usize> WideNumbers for Wide<BYTES> {
    fn error(&self, bytes: &[u8], result: &[f32]) -> ErrorSum {
        let numbers = bytes.as_chunks().0.iter().map(|bytes| (self.0)(*bytes));
        ErrorSum::of_shortfalls(
            numbers
                .zip(result)
                .map(|(number, single)| number.shortfall(*single)),
        )
    }
}
