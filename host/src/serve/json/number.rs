//! A JSON number, as exactly as each datatype can hold it.

use std::str::FromStr;

use super::Refused;
use super::scan::Scan;

/// A number as it is written.
#[derive(Clone, Copy)]
pub(in crate::serve) struct Number<'a> {
    text: &'a [u8],
    /// The number is `digits` times ten to the power of `scale`, where all its digits were held.
    digits: i64,
    scale: i32,
    is_negative: bool,
    is_whole: bool,
    is_held: bool,
}

/// Powers of ten that an FP64 holds exactly.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18,
    1e19, 1e20, 1e21, 1e22,
];

/// Decimal digits that an `i64` holds, whichever they are.
const DIGITS: usize = 18;

impl<'a> Number<'a> {
    /// As it is written.
    pub(in crate::serve) fn text(&self) -> &'a str {
        std::str::from_utf8(self.text).unwrap_or_default()
    }

    #[cold]
    fn parsed<T: FromStr>(&self) -> Option<T> {
        self.text().parse().ok()
    }

    /// Nothing where it is not a whole number, or is too large.
    #[inline]
    pub(in crate::serve) fn int(&self) -> Option<i64> {
        if !self.is_whole {
            return self.whole().map(|digits| if self.is_negative { -digits } else { digits });
        }
        if !self.is_held {
            return self.parsed();
        }
        Some(if self.is_negative { -self.digits } else { self.digits })
    }

    /// Nothing where it is written with a sign, is not a whole number, or is too large.
    #[inline]
    pub(in crate::serve) fn uint(&self) -> Option<u64> {
        if self.is_negative {
            return None;
        }
        if !self.is_whole {
            return self.whole().map(i64::cast_unsigned);
        }
        if self.is_held { Some(self.digits.cast_unsigned()) } else { self.parsed() }
    }

    /// The value without its sign where it is whole, though it is written with a fraction or an exponent: some clients
    /// know no other numbers.
    #[cold]
    fn whole(&self) -> Option<i64> {
        if !self.is_held {
            return None;
        }
        if self.digits == 0 {
            return Some(0);
        }
        let (mut digits, mut scale) = (self.digits, self.scale);
        while scale < 0 && digits % 10 == 0 {
            (digits, scale) = (digits / 10, scale + 1);
        }
        digits.checked_mul(10_i64.checked_pow(u32::try_from(scale).ok()?)?)
    }

    /// The nearest FP64; nothing where that is infinite.
    #[inline]
    pub(in crate::serve) fn fp64(&self) -> Option<f64> {
        // Where digits and power of ten are exact, what is computed with them is the nearest there is.
        if self.digits <= 1 << 53
            && let Some(value) = self.computed()
        {
            return Some(value);
        }
        self.parsed().filter(|value: &f64| value.is_finite())
    }

    /// The nearest FP32; nothing where that is infinite.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "FP32 is what is asked for")]
    pub(in crate::serve) fn fp32(&self) -> Option<f32> {
        /// Bits that an FP64 has more, and the middle between two FP32 as they say it.
        const MORE: u64 = (1 << 29) - 1;
        const MIDDLE: u64 = 1 << 28;
        /// `computed` is off by two units in the last place at most.
        const OFF: u64 = 4;
        if let Some(value) = self.computed() {
            let from_middle = (value.to_bits() & MORE).abs_diff(MIDDLE);
            let is_usual = value.abs() >= f64::from(f32::MIN_POSITIVE) && value.abs() <= f64::from(f32::MAX);
            if (is_usual && from_middle > OFF) || value == 0.0 {
                return Some(value as f32);
            }
        }
        self.parsed().filter(|value: &f32| value.is_finite())
    }

    /// Digits times power of ten, each rounded at most once.
    #[inline(always)]
    #[expect(clippy::cast_precision_loss, reason = "the caller knows how much is lost")]
    fn computed(&self) -> Option<f64> {
        if !self.is_held {
            return None;
        }
        let power = *POWERS.get(self.scale.unsigned_abs() as usize)?;
        let digits = self.digits as f64;
        let value = if self.scale < 0 { digits / power } else { digits * power };
        // The sign is as good as random, so it is no branch.
        Some(f64::from_bits(value.to_bits() | u64::from(self.is_negative) << 63))
    }
}

impl<'a> Scan<'a> {
    /// Takes the number at the place, which begins with a digit or a minus.
    #[inline(always)]
    pub(super) fn number(&mut self) -> Result<Number<'a>, Refused> {
        let all: &'a [u8] = &self.text[self.at..];
        let is_negative = all[0] == b'-';
        let unsigned = &all[usize::from(is_negative)..];
        let mut digits = 0;
        let mut rest = take_digits(unsigned, &mut digits);
        match unsigned.len() - rest.len() {
            0 => return Err(self.past(all, rest).no_value()),
            1 => {}
            _ if unsigned[0] == b'0' => {
                return Err(self.past(all, &unsigned[1..]).wrong("a number goes on after a leading 0"));
            }
            _ => {}
        }
        let (mut scale, mut is_whole) = (0, true);
        if let [b'.', fraction @ ..] = rest {
            is_whole = false;
            // Fractions are often long.
            rest = take_digits(take_eights(fraction, &mut digits), &mut digits);
            let count = fraction.len() - rest.len();
            if count == 0 {
                return Err(self.past(all, rest).wrong("expected a digit"));
            }
            scale = -i32::try_from(count).unwrap_or(i32::MAX);
        }
        let many = unsigned.len() - rest.len();
        let is_held = many <= DIGITS || significant(&unsigned[..many]) <= DIGITS;
        if let [b'e' | b'E', exponent @ ..] = rest {
            is_whole = false;
            let (value, after) = take_exponent(exponent);
            rest = after;
            let Some(value) = value else { return Err(self.past(all, rest).wrong("expected a digit")) };
            scale = scale.saturating_add(value);
        }
        let length = all.len() - rest.len();
        self.at += length;
        Ok(Number { text: &all[..length], digits, scale, is_negative, is_whole, is_held })
    }

    /// The place where `rest` begins, which is the end of `all`.
    #[cold]
    fn past(&mut self, all: &[u8], rest: &[u8]) -> &Self {
        self.at += all.len() - rest.len();
        self
    }
}

/// Adds the digits that a text begins with to `value`, and answers what follows them. What overflows is not used: there
/// are too many digits then.
#[inline(always)]
fn take_digits<'a>(mut text: &'a [u8], value: &mut i64) -> &'a [u8] {
    while let [byte @ b'0'..=b'9', rest @ ..] = text {
        *value = value.wrapping_mul(10).wrapping_add(i64::from(byte - b'0'));
        text = rest;
    }
    text
}

/// The same with eight digits at once, as often as there are so many.
#[inline(always)]
fn take_eights<'a>(mut text: &'a [u8], value: &mut i64) -> &'a [u8] {
    while let Some((bytes, rest)) = text.split_first_chunk()
        && let Some(eight) = eight_digits(*bytes)
    {
        *value = value.wrapping_mul(100_000_000).wrapping_add(eight);
        text = rest;
    }
    text
}

/// What follows the letter of an exponent: its value, which is nothing where there are no digits, and the rest.
fn take_exponent(text: &[u8]) -> (Option<i32>, &[u8]) {
    let is_negative = text.first() == Some(&b'-');
    let digits = text.strip_prefix(b"-").or_else(|| text.strip_prefix(b"+")).unwrap_or(text);
    let mut value = 0;
    let rest = take_digits(digits, &mut value);
    let count = digits.len() - rest.len();
    // Of what is longer only the size counts.
    let is_small = significant(&digits[..count]) <= DIGITS;
    let value = i32::try_from(value).ok().filter(|_| is_small).unwrap_or(i32::MAX);
    ((count > 0).then_some(if is_negative { -value } else { value }), rest)
}

/// The number that eight digits say; nothing where one of the bytes is none.
#[inline(always)]
fn eight_digits(bytes: [u8; 8]) -> Option<i64> {
    let each = |byte: u8| u64::from_le_bytes([byte; 8]);
    // Digits become their values, and all else more than 9, of which the highest bit is told.
    let values = u64::from_le_bytes(bytes) ^ each(b'0');
    if (values | values.wrapping_add(each(0x7f - 9))) & each(0x80) != 0 {
        return None;
    }
    // Neighbours become pairs, pairs become fours, fours become the number.
    let pairs = (values.wrapping_mul(1 + (10 << 8)) >> 8) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs.wrapping_mul(1 + (100 << 16)) >> 16) & 0x0000_ffff_0000_ffff;
    Some((fours.wrapping_mul(1 + (10_000 << 32)) >> 32).cast_signed())
}

/// How many digits there are from the first that is not 0 to the exponent.
fn significant(bytes: &[u8]) -> usize {
    let digits = bytes.iter().take_while(|byte| !matches!(byte, b'e' | b'E')).filter(|byte| **byte != b'.');
    digits.skip_while(|byte| **byte == b'0').count()
}

#[cfg(test)]
mod tests {
    use super::super::scan::Value;
    use super::*;

    fn number(text: &str) -> Option<Number<'_>> {
        let mut scan = Scan::new(text.as_bytes());
        match scan.value() {
            Ok(Value::Number(number)) => scan.end().ok().map(|()| number),
            _ => None,
        }
    }

    #[test]
    fn numbers_are_told_from_what_looks_like_them() {
        for text in
            ["0", "-0", "10", "1.5", "-0.0", "1e5", "1E+5", "0e-0", "123456789012345678901234567890.5e-400"]
        {
            assert_eq!(number(text).map(|number| number.text().to_owned()).as_deref(), Some(text));
        }
        for text in [
            "", "-", "+1", "01", "-01", "00", "1.", ".5", "1.e5", "1e", "1e+", "1e-", "0x1", "1_0", "--1",
            "1e1.5",
        ] {
            assert!(number(text).is_none(), "{text}");
        }
    }

    #[test]
    fn whole_numbers_are_exact_or_nothing() {
        let check = |text: &str, int: Option<i64>, uint: Option<u64>| {
            let number = number(text).unwrap();
            assert_eq!((number.int(), number.uint()), (int, uint), "{text}");
        };
        check("0", Some(0), Some(0));
        check("-0", Some(0), None);
        check("-7", Some(-7), None);
        check("9223372036854775807", Some(i64::MAX), Some(i64::MAX as u64));
        check("9223372036854775808", None, Some(1 << 63));
        check("-9223372036854775808", Some(i64::MIN), None);
        check("-9223372036854775809", None, None);
        check("18446744073709551615", None, Some(u64::MAX));
        check("18446744073709551616", None, None);
        check("99999999999999999999999999", None, None);
        check("1.0", Some(1), Some(1));
        check("-1.20e1", Some(-12), None);
        check("1e2", Some(100), Some(100));
        check("0e99", Some(0), Some(0));
        check("1.5", None, None);
        check("1e19", None, None);
        check("1e-1", None, None);
    }

    /// Against the standard library, which is exact, next to the middles between two values too.
    #[test]
    fn floats_are_the_nearest_there_are() {
        let check = |text: &str| {
            let number = number(text).unwrap();
            let fp32 = text.parse::<f32>().ok().filter(|value| value.is_finite());
            let fp64 = text.parse::<f64>().ok().filter(|value| value.is_finite());
            assert_eq!(number.fp32().map(f32::to_bits), fp32.map(f32::to_bits), "{text}");
            assert_eq!(number.fp64().map(f64::to_bits), fp64.map(f64::to_bits), "{text}");
        };
        for text in [
            "0",
            "-0",
            "-0.0",
            "0e99",
            "0.1",
            "1e22",
            "1e23",
            "1e-22",
            "1e-23",
            "16777217",
            "16777217.0000000001",
            "3.4028235677973366e38",
            "3.4028235677973365e38",
            "3.4028234e38",
            "1e39",
            "-1e39",
            "1e400",
            "1e-400",
            "1.1754943508222875e-38",
            "1.401298464324817e-45",
            "7.006492321624085e-46",
            "7.006492321624086e-46",
            "4.9e-324",
            "2.4703282292062327e-324",
            "9007199254740993",
            "18446744073709551615",
            "18446744073709551616",
            "0.000000000000000000000000000000000000000000000000000000000000001234567890123456789e60",
            "1e99999999999999999999",
            "1e-99999999999999999999",
            "0e99999999999999999999",
            "123456789012345678901234567890123456789012345678901234567890",
        ] {
            check(text);
        }
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..20_000 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            #[expect(clippy::cast_possible_truncation, reason = "bits are taken at random")]
            let value = f32::from_bits(seed as u32);
            if value.is_finite() && value.abs() < f32::MAX {
                check(&format!("{value}"));
                check(&format!("{value:e}"));
                check(&format!("{}", f64::from(value)));
                let middle = f64::midpoint(f64::from(value), f64::from(value.next_up()));
                for near in [middle, middle.next_up(), middle.next_down()] {
                    check(&format!("{near}"));
                    check(&format!("{near:.9e}"));
                }
            }
            check(&format!("{}.{}e{}", seed >> 40, seed & 0xffff_ffff, (seed % 90).cast_signed() - 45));
        }
    }
}
