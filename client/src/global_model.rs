//! The global model as it arrives: hashed and turned into parameters block by block, while a block is
//! still in the processor's cache. What comes out is whole and has the hash it was announced by.

use weighhouse_shared::ids::{ContentHash, ContentHasher, JobId, RoundId};
use weighhouse_shared::wire::messages::Holding;
use weighhouse_shared::wire::stream::Piece;

/// A model that a round starts from.
#[derive(Debug, Clone, PartialEq)]
pub struct GlobalModel {
    /// What it was sent for.
    pub job: JobId,
    /// And for which round.
    pub round: RoundId,
    /// Hash of its bytes; it was checked.
    pub hash: ContentHash,
    /// The parameters; as many as announced, of any value.
    pub parameters: Vec<f32>,
}

/// A model that is still arriving.
pub struct ArrivingModel {
    first: Piece,
    hasher: ContentHasher,
    parameters: Vec<f32>,
}

impl ArrivingModel {
    /// Begins with a model's first piece, in `memory`, whose content is dropped. None if `piece` is no first
    /// piece of whole values. The announced length must have been checked: it is set aside here.
    pub fn begin(piece: Piece, mut memory: Vec<f32>) -> Option<Self> {
        let whole = piece.offset == 0 && piece.len.is_multiple_of(4) && piece.total.is_multiple_of(4);
        let parameters = usize::try_from(piece.total / 4).ok().filter(|_| whole)?;
        memory.clear();
        memory.reserve_exact(parameters);
        Some(Self { first: piece, hasher: ContentHasher::default(), parameters: memory })
    }

    /// Whether `piece` is the next one and holds whole values.
    pub fn continues_with(&self, piece: &Piece) -> bool {
        let Piece { job, round, base: _, content, total, offset, len } = *piece;
        let (first, received) = (&self.first, 4 * self.parameters.len() as u64);
        len.is_multiple_of(4)
            && (job, round, content, total, offset)
                == (first.job, first.round, first.content, first.total, received)
    }

    /// How much of it is here.
    pub fn holding(&self) -> Holding {
        let Piece { job, round, content, .. } = self.first;
        Holding { job, round, content, received: 4 * self.parameters.len() as u64 }
    }

    /// Takes the next whole values, 32-bit little-endian floats.
    pub fn push(&mut self, block: &[u8]) {
        let (values, rest) = block.as_chunks::<4>();
        debug_assert!(rest.is_empty(), "pieces and blocks hold whole values");
        self.hasher.update(block);
        self.parameters.extend(values.iter().map(|bytes| f32::from_le_bytes(*bytes)));
    }

    /// Its memory, for another.
    pub fn into_memory(self) -> Vec<f32> {
        self.parameters
    }

    /// Whether all of it is there.
    pub fn is_complete(&self) -> bool {
        4 * self.parameters.len() as u64 >= self.first.total
    }

    /// The model; None if it is not the one it was announced as.
    pub fn finish(self) -> Option<GlobalModel> {
        let Self { first, hasher, parameters } = self;
        let model = GlobalModel { job: first.job, round: first.round, hash: first.content, parameters };
        (hasher.finish() == first.content).then_some(model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(body: &[u8], offset: u64, len: u32) -> Piece {
        let (job, round, content) = (JobId::from_bytes([1; 32]), RoundId(2), ContentHash::of(body));
        Piece { job, round, base: content, content, total: body.len() as u64, offset, len }
    }

    fn body(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn a_model_in_pieces_becomes_its_parameters_whatever_the_memory_held() {
        let values = [1.5f32, -2.0, f32::MIN_POSITIVE];
        let body = body(&values);
        let mut arriving = ArrivingModel::begin(piece(&body, 0, 8), vec![9.0; 7]).unwrap();
        arriving.push(&body[..8]);
        assert!(!arriving.is_complete());
        assert!(arriving.continues_with(&piece(&body, 8, 4)));
        arriving.push(&body[8..]);
        assert!(arriving.is_complete());
        assert_eq!(arriving.finish().unwrap().parameters, values);
    }

    #[test]
    fn a_damaged_model_is_none() {
        let body = body(&[1.0, 2.0]);
        let mut arriving = ArrivingModel::begin(piece(&body, 0, 8), Vec::new()).unwrap();
        arriving.push(&[0; 8]);
        assert_eq!(arriving.finish(), None);
    }

    #[test]
    fn pieces_out_of_order_of_other_models_or_of_cut_values_are_refused() {
        let body = body(&[1.0, 2.0]);
        assert!(ArrivingModel::begin(piece(&body, 4, 4), Vec::new()).is_none());
        assert!(ArrivingModel::begin(piece(&body, 0, 3), Vec::new()).is_none());
        assert!(ArrivingModel::begin(piece(&body[..7], 0, 4), Vec::new()).is_none());
        let arriving = ArrivingModel::begin(piece(&body, 0, 4), Vec::new()).unwrap();
        assert!(arriving.continues_with(&piece(&body, 0, 4)));
        assert!(!arriving.continues_with(&piece(&body, 4, 4)));
        assert!(!arriving.continues_with(&Piece { round: RoundId(3), ..piece(&body, 0, 4) }));
    }
}
