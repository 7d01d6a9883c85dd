//! Order and completeness of the parts of one disk.
//!
//! Contradicting orders and gaps are errors. Parts sort bytewise by title, as epoch does. Their numbers are only
//! evidence that no part is missing or duplicated, and that the bytewise order is the numeric one.

use super::PartOrder;

/// One part: its title, its number as written, and its index in the manifest.
#[derive(Clone, Copy, Debug)]
pub(super) struct DiskPart<'a> {
    pub(super) index: usize,
    pub(super) title: &'a str,
    pub(super) number: &'a str,
}

/// The numbering of the parts of one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NumberRadix {
    Decimal,
    Hexadecimal,
    Letters,
}

/// The parts in order, with an optional warning; or why there is no disk.
pub(super) fn sequence(
    mut parts: Vec<DiskPart<'_>>,
    order: PartOrder,
) -> Result<(Vec<usize>, Option<String>), String> {
    let radix = NumberRadix::of(&parts)?;
    // Stable sorts on manifest order: parts with equal keys stay in the author's order.
    parts.sort_by_key(|part| part.index);
    let listed = indices(&parts);
    parts.sort_by_key(|part| radix.value(part.number));
    let natural = indices(&parts);
    let warning = check(&parts, radix)?;
    parts.sort_by_key(|part| part.title);
    let bytewise = indices(&parts);
    let order = match order {
        PartOrder::Manifest => listed,
        PartOrder::Natural => natural,
        PartOrder::Epoch if bytewise == natural => bytewise,
        PartOrder::Epoch => {
            let out_of_place = bytewise.iter().zip(&natural).position(|(a, b)| a != b).unwrap_or_default();
            return Err(format!(
                "the numbers of its parts are not padded: by title {:?} comes at place {out_of_place}, by number it \
                 does not, and no order of parts was chosen",
                parts[out_of_place].title
            ));
        }
    };
    Ok((order, warning))
}

fn indices(parts: &[DiskPart<'_>]) -> Vec<usize> {
    parts.iter().map(|part| part.index).collect()
}

/// Checks that the numbers of `parts`, sorted by them, are a complete sequence from its start.
fn check(parts: &[DiskPart<'_>], radix: NumberRadix) -> Result<Option<String>, String> {
    let Some(first) = parts.first() else { return Ok(None) };
    let start = radix.value(first.number);
    if start > 1 || (start == 1 && radix == NumberRadix::Letters) {
        return Err(format!("its first part is {:?}: the parts before it are missing", first.title));
    }
    for pair in parts.windows(2) {
        let (before, after) = (pair[0].number, pair[1].number);
        if radix.value(before) == radix.value(after) {
            return Err(format!("{:?} and {:?} have the same number", pair[0].title, pair[1].title));
        }
        let next = radix.value(before).checked_add(1) == Some(radix.value(after));
        if !next && radix.widened(before).as_deref() != Some(after) {
            return Err(format!("a part is missing between {:?} and {:?}", pair[0].title, pair[1].title));
        }
    }
    Ok((start == 1).then(|| format!("its parts start at {:?}: a part before it may be missing", first.title)))
}

impl NumberRadix {
    fn of(parts: &[DiskPart<'_>]) -> Result<Self, String> {
        let all = |test: fn(u8) -> bool| parts.iter().all(|part| part.number.bytes().all(test));
        if all(|byte| byte.is_ascii_digit()) {
            Ok(NumberRadix::Decimal)
        } else if all(|byte| byte.is_ascii_lowercase()) {
            Ok(NumberRadix::Letters)
        } else if all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            Ok(NumberRadix::Hexadecimal)
        } else {
            let titles: Vec<_> = parts.iter().take(4).map(|part| part.title).collect();
            Err(format!("its parts are numbered in different ways: {titles:?}"))
        }
    }

    /// The digits, lowest first.
    fn digits(self) -> &'static [u8] {
        match self {
            NumberRadix::Decimal => b"0123456789",
            NumberRadix::Hexadecimal => b"0123456789abcdef",
            NumberRadix::Letters => b"abcdefghijklmnopqrstuvwxyz",
        }
    }

    /// The value of a number. A text too long for a number is rejected earlier, and would saturate here.
    fn value(self, text: &str) -> u128 {
        let digits = self.digits();
        text.bytes().fold(0u128, |value, byte| {
            let digit = digits.iter().position(|digit| *digit == byte).unwrap_or_default();
            value.saturating_mul(digits.len() as u128).saturating_add(digit as u128)
        })
    }

    /// The number that GNU split writes after `text` when it runs out of numbers and widens: 89 and then 9000, 9899
    /// and then 990000, yz and then zaaa. The leading highest digits keep the bytewise order.
    fn widened(self, text: &str) -> Option<String> {
        let digits = self.digits();
        let [lowest, .., before, highest] = *digits else { return None };
        let text = text.as_bytes();
        let width = text.iter().take_while(|byte| **byte == highest).count();
        let rest = text.get(width..)?;
        let full =
            rest.len() == width + 2 && rest[0] == before && rest[1..].iter().all(|byte| *byte == highest);
        let repeat = |byte: u8, count: usize| char::from(byte).to_string().repeat(count);
        full.then(|| repeat(highest, width + 1) + &repeat(lowest, width + 3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(titles: &[&str], order: PartOrder) -> Result<Vec<usize>, String> {
        let parts = titles.iter().enumerate().map(|(index, title)| DiskPart {
            index,
            title,
            number: title.rsplit('.').next().unwrap(),
        });
        sequence(parts.collect(), order).map(|(order, _)| order)
    }

    /// The suffixes of `split -d -b 1` of so many bytes, checked against GNU coreutils 9.1 at 1000.
    fn gnu(count: usize) -> Vec<String> {
        let mut names: Vec<_> = (0..90).map(|n| format!("d.{n:02}")).collect();
        names.extend((0..900).map(|n| format!("d.9{n:03}")));
        names.extend((0..9000).map(|n| format!("d.99{n:04}")));
        names.truncate(count);
        names
    }

    #[test]
    fn parts_sort_by_title_not_by_place() {
        assert_eq!(order(&["d.01", "d.00", "d.02"], PartOrder::Epoch), Ok(vec![1, 0, 2]));
        assert_eq!(order(&["d.01", "d.00", "d.02"], PartOrder::Manifest), Ok(vec![0, 1, 2]));
    }

    #[test]
    fn a_gap_is_no_disk_whatever_order_was_chosen() {
        for chosen in [PartOrder::Epoch, PartOrder::Natural, PartOrder::Manifest] {
            let reason = order(&["d.00", "d.01", "d.03"], chosen).unwrap_err();
            assert_eq!(reason, r#"a part is missing between "d.01" and "d.03""#);
            assert!(order(&["d.02", "d.03"], chosen).unwrap_err().contains("before it are missing"));
            assert!(order(&["d.0", "d.00"], chosen).unwrap_err().contains("the same number"));
        }
        assert!(order(&["d.ab", "d.ac"], PartOrder::Epoch).unwrap_err().contains("before it are missing"));
    }

    #[test]
    fn the_widening_of_split_is_no_gap() {
        for count in [89, 90, 91, 990, 991, 2000] {
            let names = gnu(count);
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            assert_eq!(order(&names, PartOrder::Epoch), Ok((0..count).collect()), "{count}");
        }
        let gap = [&gnu(90)[..], &["d.9001".into()]].concat();
        let gap: Vec<_> = gap.iter().map(String::as_str).collect();
        assert!(order(&gap, PartOrder::Epoch).unwrap_err().contains(r#""d.89" and "d.9001""#));
        assert_eq!(NumberRadix::Letters.widened("yz").as_deref(), Some("zaaa"));
        assert_eq!(NumberRadix::Hexadecimal.widened("ef").as_deref(), Some("f000"));
        assert_eq!(NumberRadix::Decimal.widened("9899").as_deref(), Some("990000"));
        assert_eq!(NumberRadix::Decimal.widened("88"), None);
        assert_eq!(NumberRadix::Decimal.widened("99"), None);
    }

    #[test]
    fn numbers_that_are_not_padded_need_an_order() {
        let titles: Vec<_> = (1..=10).map(|n| format!("d.{n}")).collect();
        let titles: Vec<_> = titles.iter().map(String::as_str).collect();
        let reason = order(&titles, PartOrder::Epoch).unwrap_err();
        assert!(reason.contains("not padded") && reason.contains("\"d.10\""), "{reason}");
        assert_eq!(order(&titles, PartOrder::Natural), Ok((0..10).collect()));
        assert_eq!(order(&titles[..9], PartOrder::Epoch), Ok((0..9).collect()));
    }

    #[test]
    fn letters_and_hexadecimal_count() {
        assert_eq!(order(&["d.ab", "d.aa", "d.ac"], PartOrder::Epoch), Ok(vec![1, 0, 2]));
        let hex: Vec<_> = (0..20).map(|n| format!("d.{n:02x}")).collect();
        let hex: Vec<_> = hex.iter().map(String::as_str).collect();
        assert_eq!(order(&hex, PartOrder::Epoch), Ok((0..20).collect()));
        assert!(order(&["d.00", "d.zz"], PartOrder::Epoch).unwrap_err().contains("different ways"));
    }

    #[test]
    fn counting_from_one_is_taken_with_a_warning() {
        let part = |index, title, number| DiskPart { index, title, number };
        let parts = vec![part(0, "d.01", "01"), part(1, "d.02", "02")];
        let (order, warning) = sequence(parts, PartOrder::Epoch).unwrap();
        assert_eq!(order, [0, 1]);
        assert!(warning.unwrap().contains("start at"));
    }
}
