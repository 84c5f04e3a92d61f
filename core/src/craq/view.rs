//! What one replica must know of its chain.

use crate::types::{Chain, ChainVersion, NodeId, TargetId, TargetState};

/// This replica's part in the chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Place {
    /// Not in the chain, waiting, offline or the last one that served: answers no request.
    #[default]
    Out,
    /// Takes what the predecessor sends, serves no client.
    Syncing,
    Member {
        head: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Successor {
    pub target: TargetId,
    pub node: NodeId,
    pub syncing: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct View {
    pub chain_version: ChainVersion,
    pub place: Place,
    pub successor: Option<Successor>,
}

impl View {
    /// What `chain` means for its replica on `node`.
    pub fn of(chain: &Chain, node: NodeId) -> View {
        let state = chain.members.iter().find(|member| member.node == node).map(|member| member.state);
        let place = match state {
            Some(TargetState::Serving) => {
                Place::Member { head: chain.head().is_some_and(|head| head.node == node) }
            }
            Some(TargetState::Syncing) => Place::Syncing,
            _ => Place::Out,
        };
        let successor = match place {
            Place::Member { .. } => chain.successor(node).map(|member| Successor {
                target: member.target,
                node: member.node,
                syncing: member.state == TargetState::Syncing,
            }),
            _ => None,
        };
        View { chain_version: chain.version, place, successor }
    }

    pub fn is_head(&self) -> bool {
        self.place == Place::Member { head: true }
    }

    pub fn is_member(&self) -> bool {
        matches!(self.place, Place::Member { .. })
    }

    /// The last SERVING member: it knows which version is committed.
    pub fn is_tail(&self) -> bool {
        self.is_member() && self.successor.is_none_or(|successor| successor.syncing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ChainId, ChainMember};

    fn chain(states: &[TargetState]) -> Chain {
        let members = states
            .iter()
            .enumerate()
            .map(|(place, state)| ChainMember {
                target: TargetId(10 + place as u64),
                node: NodeId(1 + place as u32),
                state: *state,
            })
            .collect();
        Chain { id: ChainId(7), version: ChainVersion(3), members }
    }

    #[test]
    fn head_middle_and_tail_know_their_successors() {
        use TargetState::*;
        let chain = chain(&[Serving, Serving, Serving, Offline]);
        let views: Vec<View> = (1..=5).map(|node| View::of(&chain, NodeId(node))).collect();
        assert!(views[0].is_head() && !views[0].is_tail());
        assert_eq!(views[0].successor.unwrap().node, NodeId(2));
        assert!(!views[1].is_head() && !views[1].is_tail() && views[1].is_member());
        assert!(views[2].is_tail() && views[2].successor.is_none());
        assert_eq!(views[3].place, Place::Out, "an offline replica is out");
        assert_eq!(views[4].place, Place::Out, "a node outside the chain is out");
    }

    #[test]
    fn tail_forwards_to_the_syncing_replica_and_that_one_to_none() {
        use TargetState::*;
        let chain = chain(&[Serving, Syncing, Waiting]);
        let tail = View::of(&chain, NodeId(1));
        assert!(tail.is_head() && tail.is_tail());
        assert!(tail.successor.unwrap().syncing);
        let returning = View::of(&chain, NodeId(2));
        assert_eq!((returning.place, returning.successor), (Place::Syncing, None));
        assert_eq!(View::of(&chain, NodeId(3)).place, Place::Out);
    }

    #[test]
    fn last_serving_replica_serves_no_client() {
        let chain = chain(&[TargetState::LastServing]);
        assert_eq!(View::of(&chain, NodeId(1)).place, Place::Out);
    }
}
