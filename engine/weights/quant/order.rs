//! GPTQ's act order: from the group of every column to an order in which the groups are contiguous.

use std::sync::Arc;

/// The order of the columns for `g_idx`, little-endian i32, `k` of them over `groups` groups of `size` columns; None where they are in
/// order already.
///
/// # Errors
/// An entry is no group, or a group is not of that size (the last may be short).
pub fn column_order(g_idx: &[u8], groups: usize, size: usize) -> Result<Option<Arc<[u32]>>, String> {
    let g_idx: Vec<i32> = g_idx.as_chunks::<4>().0.iter().map(|word| i32::from_le_bytes(*word)).collect();
    let group_of = |group: &i32| usize::try_from(*group).ok().filter(|group| *group < groups);
    let mut members: Vec<Vec<u32>> = vec![Vec::new(); groups];
    for (column, group) in g_idx.iter().enumerate() {
        let group = group_of(group).ok_or_else(|| format!("holds {group} at {column}, expected 0 to {}", groups.saturating_sub(1)))?;
        members[group].push(column as u32);
    }
    for (group, columns) in members.iter().enumerate() {
        let expected = size.min(g_idx.len() - (group * size).min(g_idx.len()));
        if columns.len() != expected {
            return Err(format!("puts {} columns into group {group}, expected {expected}", columns.len()));
        }
    }
    let order = members.concat();
    let sorted = order.iter().enumerate().all(|(j, column)| j == *column as usize);
    Ok((!sorted).then(|| order.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(groups: &[i32]) -> Vec<u8> {
        groups.iter().flat_map(|group| group.to_le_bytes()).collect()
    }

    #[test]
    fn groups_become_contiguous_and_keep_their_order_inside() {
        let order = column_order(&bytes(&[1, 0, 1, 0, 2]), 3, 2);
        assert_eq!(order, Ok(Some(vec![1, 3, 0, 2, 4].into())));
        assert_eq!(column_order(&bytes(&[0, 1, 0, 0]), 2, 3), Ok(Some(vec![0, 2, 3, 1].into())), "a short last group");
        assert_eq!(column_order(&bytes(&[0, 0, 1, 1]), 2, 2), Ok(None), "sorted");
        assert_eq!(column_order(&bytes(&[0, 0, 0]), 1, 3), Ok(None), "one group");
    }

    #[test]
    fn what_is_no_order_is_refused() {
        for (groups, count, size, expected) in [
            (&[0, 2][..], 2, 1, "holds 2 at 1, expected 0 to 1"),
            (&[-1, 0], 2, 1, "holds -1 at 0"),
            (&[0, 0, 0, 1], 2, 2, "puts 3 columns into group 0, expected 2"),
        ] {
            let said = column_order(&bytes(groups), count, size).unwrap_err();
            assert!(said.contains(expected), "{said}");
        }
    }
}
