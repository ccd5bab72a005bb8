//! Bytes on their way to a socket.

use std::rc::Rc;

use bytes::Bytes;

/// Bytes on their way to a socket: one machine word, cheap to clone within a shard, and never changed while shared.
///
/// The engine keeps a handle for as long as the kernel reads the bytes, so nobody else can change them meanwhile:
/// every change asks for the only handle.
#[derive(Clone, Debug)]
pub struct Chunk(Rc<Inner>);

#[derive(Debug)]
enum Inner {
    /// Bytes that were put together for this socket, in a vector that can be used again.
    Owned(Vec<u8>),
    /// Bytes that other sockets or shards send too.
    Shared(Bytes),
}

impl Chunk {
    /// A chunk of owned bytes; the vector comes back by [`Chunk::into_reusable`].
    pub fn from_vec(bytes: Vec<u8>) -> Chunk {
        Chunk(Rc::new(Inner::Owned(bytes)))
    }

    /// A chunk of bytes that are shared with others.
    pub fn from_bytes(bytes: Bytes) -> Chunk {
        Chunk(Rc::new(Inner::Shared(bytes)))
    }

    /// How many bytes it holds.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Whether it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    /// The bytes. Their address stays the same for as long as any handle of this chunk exists and none of them appends.
    pub fn as_slice(&self) -> &[u8] {
        match &*self.0 {
            Inner::Owned(bytes) => bytes,
            Inner::Shared(bytes) => bytes,
        }
    }

    /// Appends `more` if this is the only handle, the bytes are owned and the result has at most `limit` bytes.
    /// Otherwise changes nothing and answers false.
    pub fn try_append(&mut self, more: &[u8], limit: usize) -> bool {
        match Rc::get_mut(&mut self.0) {
            Some(Inner::Owned(bytes)) if bytes.len() + more.len() <= limit => {
                bytes.extend_from_slice(more);
                true
            }
            _ => false,
        }
    }

    /// Empties the chunk for reuse, with its allocations, if this is the only handle and the bytes are owned. Otherwise
    /// changes nothing and answers false.
    pub fn try_clear(&mut self) -> bool {
        match Rc::get_mut(&mut self.0) {
            Some(Inner::Owned(bytes)) => {
                bytes.clear();
                true
            }
            _ => false,
        }
    }

    /// The vector back for reuse, emptied, when this was the only handle of owned bytes.
    pub fn into_reusable(self) -> Option<Vec<u8>> {
        match Rc::try_unwrap(self.0) {
            Ok(Inner::Owned(mut bytes)) => {
                bytes.clear();
                Some(bytes)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appends_only_to_the_sole_owner_within_the_limit() {
        let mut chunk = Chunk::from_vec(b"abc".to_vec());
        assert!(chunk.try_append(b"de", 5));
        assert!(!chunk.try_append(b"f", 5), "past the limit");
        let other = chunk.clone();
        assert!(!chunk.try_append(b"f", 100), "shared bytes may be in the kernel's hands");
        drop(other);
        assert!(chunk.try_append(b"f", 100));
        assert_eq!(chunk.as_slice(), b"abcdef");
        assert!(!Chunk::from_bytes(Bytes::from_static(b"x")).try_append(b"y", 100));
    }

    #[test]
    fn gives_the_vector_back_only_to_the_sole_owner() {
        let chunk = Chunk::from_vec(Vec::with_capacity(64));
        let other = chunk.clone();
        assert!(other.into_reusable().is_none());
        let vector = chunk.into_reusable().expect("the only handle");
        assert!(vector.is_empty() && vector.capacity() >= 64);
        assert!(Chunk::from_bytes(Bytes::from_static(b"x")).into_reusable().is_none());
    }

    #[test]
    fn is_emptied_in_place_only_by_the_sole_owner() {
        let mut chunk = Chunk::from_vec(b"abc".to_vec());
        let other = chunk.clone();
        assert!(!chunk.try_clear());
        assert_eq!(other.as_slice(), b"abc");
        drop(other);
        assert!(chunk.try_clear() && chunk.is_empty());
        assert!(!Chunk::from_bytes(Bytes::from_static(b"x")).try_clear());
    }

    #[test]
    fn is_one_word() {
        assert_eq!(size_of::<Option<Chunk>>(), size_of::<usize>());
    }
}
