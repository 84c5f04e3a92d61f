//! Which token goes where: counts, orders and numbers that moves of rows need, from the experts that tokens have chosen.

/// A route that cannot be, with the reason in words.
#[derive(Debug, PartialEq, Eq)]
pub struct NoRoute(pub String);

/// Where tokens go. `in_rank`: 1 for each (token, rank) with an expert of the rank that the token has chosen.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout {
    pub in_rank: Vec<u8>,
    pub per_rank: Vec<i32>,
    pub per_expert: Vec<i32>,
}

/// The layout of `topk` experts a token, -1 for none, where each rank owns equally many.
pub fn layout(chosen: &[i64], topk: usize, experts: usize, ranks: usize) -> Result<Layout, NoRoute> {
    if ranks == 0 || experts == 0 || !experts.is_multiple_of(ranks) {
        return Err(NoRoute(format!("{experts} experts on {ranks} ranks: each must own equally many")));
    }
    let tokens = count_of(chosen, topk)?;
    let owned = experts / ranks;
    let mut found =
        Layout { in_rank: vec![0; tokens * ranks], per_rank: vec![0; ranks], per_expert: vec![0; experts] };
    for (token, chosen) in chosen.chunks_exact(topk.max(1)).enumerate() {
        for &expert in chosen.iter().filter(|&&each| each != -1) {
            let expert = known(expert, experts)?;
            let is_there = &mut found.in_rank[token * ranks + expert / owned];
            found.per_expert[expert] += 1;
            found.per_rank[expert / owned] += i32::from(*is_there == 0);
            *is_there = 1;
        }
    }
    Ok(found)
}

/// The number of each token among those for a rank, or -1, and how many there are up to the end of each of `channels`
/// equal parts of the tokens, the last ones shorter or empty: (tokens, ranks) and (ranks, channels).
pub fn heads(member: &[u8], ranks: usize, channels: usize) -> Result<(Vec<i64>, Vec<i32>), NoRoute> {
    let tokens = count_of(member, ranks)?;
    let each = tokens.div_ceil(channels.max(1));
    let (mut heads, mut prefix) = (vec![-1; member.len()], vec![0; ranks * channels]);
    let mut counts = vec![0_i64; ranks];
    for channel in 0..channels.max(1) {
        for token in (channel * each).min(tokens)..((channel + 1) * each).min(tokens) {
            for (rank, count) in counts.iter_mut().enumerate() {
                if member[token * ranks + rank] != 0 {
                    heads[token * ranks + rank] = *count;
                    *count += 1;
                }
            }
        }
        if channels > 0 {
            for (rank, &count) in counts.iter().enumerate() {
                prefix[rank * channels + channel] = count as i32;
            }
        }
    }
    Ok((heads, prefix))
}

/// Experts as the rank counts them that owns those from `first` on; -1, and no weight, for all others.
pub fn keep_own(chosen: &mut [i64], weights: Option<&mut [f32]>, first: i64, owned: i64) {
    let mut weights = weights.map(|all| all.iter_mut());
    for expert in chosen {
        let local = *expert - first;
        let is_own = *expert >= 0 && (0..owned).contains(&local);
        *expert = if is_own { local } else { -1 };
        if let Some(weight) = weights.as_mut().and_then(Iterator::next)
            && !is_own
        {
            *weight = 0.0;
        }
    }
}

/// The tokens of each expert in turn, in their order, and how many it has; what is no expert is left out.
pub fn sort(chosen: &[i64], topk: usize, experts: usize) -> Result<(Vec<i64>, Vec<i64>), NoRoute> {
    count_of(chosen, topk)?;
    let mut counts = vec![0_i64; experts];
    let found = |&(_, expert): &(usize, &i64)| known(*expert, experts).is_ok();
    for (_, &expert) in chosen.iter().enumerate().filter(found) {
        counts[expert as usize] += 1;
    }
    let mut next = vec![0_usize; experts];
    for expert in 1..experts {
        next[expert] = next[expert - 1] + counts[expert - 1] as usize;
    }
    let mut tokens = vec![0; counts.iter().sum::<i64>() as usize];
    for (entry, &expert) in chosen.iter().enumerate().filter(found) {
        let place = &mut next[expert as usize];
        tokens[*place] = (entry / topk) as i64;
        *place += 1;
    }
    Ok((tokens, counts))
}

fn known(expert: i64, experts: usize) -> Result<usize, NoRoute> {
    usize::try_from(expert)
        .ok()
        .filter(|&each| each < experts)
        .ok_or_else(|| NoRoute(format!("expert {expert} of {experts}")))
}

fn count_of<T>(numbers: &[T], each: usize) -> Result<usize, NoRoute> {
    if numbers.is_empty() {
        return Ok(0);
    }
    if each == 0 || !numbers.len().is_multiple_of(each) {
        return Err(NoRoute(format!("{} numbers are not {each} for each token", numbers.len())));
    }
    Ok(numbers.len() / each)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_counts_once_for_a_rank() {
        let found = layout(&[0, 1, 3, -1, -1, -1, 2, 0], 2, 4, 2).unwrap();
        assert_eq!(found.in_rank, [1, 0, 0, 1, 0, 0, 1, 1]);
        assert_eq!(found.per_rank, [2, 2]);
        assert_eq!(found.per_expert, [2, 1, 1, 1]);
        assert_eq!(layout(&[], 2, 4, 2).unwrap().per_rank, [0, 0]);
    }

    #[test]
    fn routes_that_cannot_be_are_refused() {
        assert_eq!(layout(&[4], 1, 4, 2), Err(NoRoute("expert 4 of 4".to_owned())));
        assert_eq!(layout(&[-2], 1, 4, 2), Err(NoRoute("expert -2 of 4".to_owned())));
        assert!(layout(&[0], 1, 4, 3).is_err());
        assert!(layout(&[0, 1, 2], 2, 4, 2).is_err());
        assert!(heads(&[1, 0, 1], 2, 1).is_err());
        assert!(sort(&[1, 0, 1], 0, 2).is_err());
    }

    #[test]
    fn heads_count_members() {
        let (numbers, prefix) = heads(&[1, 0, 1, 1, 0, 1], 2, 2).unwrap();
        assert_eq!(numbers, [0, -1, 1, 0, -1, 1]);
        assert_eq!(prefix, [2, 2, 1, 2]);
        assert_eq!(heads(&[1, 0, 1, 1, 0, 1], 2, 0).unwrap(), (numbers, vec![]));
        assert_eq!(heads(&[], 2, 3).unwrap(), (vec![], vec![0; 6]));
        assert_eq!(heads(&[1, 0], 2, 3).unwrap().1, [1, 1, 1, 0, 0, 0]);
    }

    #[test]
    fn own_experts_keep_their_weights() {
        let (mut chosen, mut weights) = ([3, 4, -1, 6, 5], [1.0, 2.0, 3.0, 4.0, 5.0]);
        keep_own(&mut chosen, Some(&mut weights), 4, 2);
        assert_eq!((chosen, weights), ([-1, 0, -1, -1, 1], [0.0, 2.0, 0.0, 0.0, 5.0]));
        keep_own(&mut chosen, None, 0, 1);
        assert_eq!(chosen, [-1, 0, -1, -1, -1]);
    }

    #[test]
    fn tokens_are_sorted_by_expert_in_their_order() {
        let (tokens, counts) = sort(&[2, 0, -1, 2, 0, 7], 2, 3).unwrap();
        assert_eq!((tokens, counts), (vec![0, 2, 0, 1], vec![2, 0, 2]));
        assert_eq!(sort(&[], 2, 3).unwrap(), (vec![], vec![0; 3]));
    }
}
