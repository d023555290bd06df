//! Content as a stream of data, holes left out.

use crate::Extent;

/// Content as a stream: the bytes of its extents in order, or all its bytes when it has no holes.
pub trait Content: Send {
    /// Logical size in bytes, holes included.
    fn size(&self) -> u64;
    /// Where the data lies; `None` when there are no holes.
    fn extents(&self) -> Option<&[Extent]>;
    /// Fills as much of `buffer` as it can; 0 means the end.
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize>;

    /// Bytes of data: what reading to the end gives.
    fn data_len(&self) -> u64 {
        match self.extents() {
            None => self.size(),
            Some(extents) => extents.iter().map(|extent| extent.len).sum(),
        }
    }
}
