//! Rings of bytes in memory that two processes share.
//!
//! A [`SharedMemory`] holds two rings, one for each direction. Each ring has one writer and one reader, which never wait
//! in here: a writer takes what fits, a reader takes what is there. Who wants to wait says so in the ring first, and the
//! other end, when it moves on, learns that it has somebody to wake. How one wakes the other is not known here.
//!
//! The other end is another process, and what it writes into the control words is not believed: indices that cannot be are
//! an error, and no access leaves the mapping.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use bytes::{BufMut as _, BytesMut};
use rustix::fs::ftruncate;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Bytes that a ring holds. Hidden states of a step of decoding fit many times; those of a prefill are read while they
/// are written. Small enough to stay in a core's cache.
pub(crate) const RING: usize = 1 << 20;

/// Where a ring's words are, each in a cache line of its own, and its bytes.
const READ: usize = 0;
const WRITTEN: usize = 128;
const READER_WAITS: usize = 256;
const WRITER_WAITS: usize = 384;
/// Both rings begin on a page, of whatever size pages are: systems round a mapping up to whole ones.
const BYTES: usize = 16 << 10;

const ONE: usize = BYTES + RING;
const ALL: usize = 2 * ONE;

/// A mapping of two rings.
#[derive(Debug)]
struct SharedMemory {
    start: NonNull<u8>,
}

#[expect(unsafe_code, reason = "memory that another process writes to")]
// SAFETY: it is an address; what lies there is reached by atomics, and by copies of ranges that the atomics hand from one
// end to the other.
unsafe impl Send for SharedMemory {}
#[expect(unsafe_code, reason = "memory that another process writes to")]
// SAFETY: as above.
unsafe impl Sync for SharedMemory {}

/// The end of a ring at which bytes go in. There is one.
#[derive(Debug)]
pub(crate) struct RingWriter(Ring);

/// The end of a ring at which bytes come out. There is one.
#[derive(Debug)]
pub(crate) struct RingReader(Ring);

#[derive(Debug)]
struct Ring {
    memory: Arc<SharedMemory>,
    at: usize,
}

/// Makes the memory, and maps it. The other process maps the same file.
pub(crate) fn create() -> io::Result<(OwnedFd, RingWriter, RingReader)> {
    let file = anonymous_file()?;
    ftruncate(&file, ALL as u64)?;
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{SealFlags, fcntl_add_seals};
        // Nobody can make it shorter, which would kill whoever reads behind its end.
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    }
    let memory = Arc::new(SharedMemory::map(&file)?);
    let writer = RingWriter(Ring { memory: Arc::clone(&memory), at: 0 });
    Ok((file, writer, RingReader(Ring { memory, at: ONE })))
}

/// Maps memory that another process made, at its other ends.
pub(crate) fn attach(file: impl AsFd) -> io::Result<(RingWriter, RingReader)> {
    let length = rustix::fs::fstat(&file)?.st_size;
    if u64::try_from(length).is_ok_and(|length| length < ALL as u64) {
        return Err(io::Error::other(format!("shared memory of {length} bytes in place of {ALL}")));
    }
    let memory = Arc::new(SharedMemory::map(file)?);
    let reader = RingReader(Ring { memory: Arc::clone(&memory), at: 0 });
    Ok((RingWriter(Ring { memory, at: ONE }), reader))
}

#[cfg(target_os = "linux")]
fn anonymous_file() -> io::Result<OwnedFd> {
    use rustix::fs::{MemfdFlags, memfd_create};
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    Ok(memfd_create("planaria-pipe", flags)?)
}

#[cfg(not(target_os = "linux"))]
fn anonymous_file() -> io::Result<OwnedFd> {
    use rustix::fs::Mode;
    use rustix::shm::{self, OFlags};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    // The name is gone before anybody else looks for it; it only must not be taken.
    let (pid, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let name = format!("/planaria-{pid}-{count}");
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
    let file = shm::open(name.as_str(), flags, Mode::RUSR | Mode::WUSR)?;
    shm::unlink(name.as_str())?;
    Ok(file)
}

impl SharedMemory {
    #[expect(unsafe_code, reason = "no safe crate maps memory that is written by others")]
    fn map(file: impl AsFd) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping of `ALL` bytes at an address that the system chooses overlaps nothing.
        let start = unsafe { mmap(std::ptr::null_mut(), ALL, access, MapFlags::SHARED, file, 0)? };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start })
    }
}

impl Drop for SharedMemory {
    #[expect(unsafe_code, reason = "the other half of `map`")]
    fn drop(&mut self) {
        // SAFETY: `map` made this mapping, of this length, and all that refers to it holds the `Arc` that ends here.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), ALL) };
        if let Err(error) = unmapped {
            tracing::debug!(%error, "shared memory stays mapped");
        }
    }
}

impl Ring {
    #[expect(unsafe_code, reason = "words that two processes share")]
    fn index(&self, word: usize) -> &AtomicU64 {
        // SAFETY: `at + word` lies in the mapping and is a multiple of 8 from a page's start; both processes reach these eight
        // bytes by atomics alone; the mapping lives as long as `self`.
        unsafe { AtomicU64::from_ptr(self.memory.start.as_ptr().add(self.at + word).cast()) }
    }

    #[expect(unsafe_code, reason = "words that two processes share")]
    fn flag(&self, word: usize) -> &AtomicU32 {
        // SAFETY: as for `index`.
        unsafe { AtomicU32::from_ptr(self.memory.start.as_ptr().add(self.at + word).cast()) }
    }

    /// What was read and written in all, and how many bytes wait.
    fn indices(&self) -> io::Result<(u64, u64, usize)> {
        let (read, written) =
            (self.index(READ).load(Ordering::Acquire), self.index(WRITTEN).load(Ordering::Acquire));
        match usize::try_from(written.wrapping_sub(read)) {
            Ok(waits) if waits <= RING => Ok((read, written, waits)),
            _ => Err(io::Error::other("the other end of a ring has broken its indices")),
        }
    }

    /// Where the byte of this index is.
    fn place(&self, index: u64) -> (usize, usize) {
        // RING is a power of two and fits.
        let offset = usize::try_from(index % RING as u64).unwrap_or(0);
        (self.at + BYTES + offset, RING - offset)
    }

    /// Somebody waits at the other end, and now has something to wake for: whoever hears this first wakes it.
    fn take_waiter(&self, flag: usize) -> bool {
        // What moved before is seen by whoever sets the flag after this, and looks again; see `wait`.
        fence(Ordering::SeqCst);
        self.flag(flag).load(Ordering::Relaxed) != 0
            && self.flag(flag).swap(0, Ordering::SeqCst) != 0
    }

    fn wait(&self, flag: usize) {
        self.flag(flag).store(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }
}

impl RingWriter {
    /// Puts in as much as there is room for, and says how much that was.
    #[expect(unsafe_code, reason = "a copy into memory that two processes share")]
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (_, written, waits) = self.0.indices()?;
        let count = bytes.len().min(RING - waits);
        let mut left = bytes.get(..count).unwrap_or_default();
        let mut index = written;
        while !left.is_empty() {
            let (place, contiguous) = self.0.place(index);
            let (now, later) = left.split_at(contiguous.min(left.len()));
            // SAFETY: `place + now.len()` is at most the end of the ring's bytes; the reader leaves bytes from `written` on alone
            // until the index says otherwise; `bytes` is memory of this process.
            unsafe {
                let to = self.0.memory.start.as_ptr().add(place);
                std::ptr::copy_nonoverlapping(now.as_ptr(), to, now.len());
            }
            (index, left) = (index.wrapping_add(now.len() as u64), later);
        }
        self.0.index(WRITTEN).store(index, Ordering::Release);
        Ok(count)
    }

    /// Whether the reader waits, and is to be woken now.
    pub(crate) fn wakes_reader(&self) -> bool {
        self.0.take_waiter(READER_WAITS)
    }

    /// Says that this end will wait for room. Whether there is none: otherwise it need not wait.
    pub(crate) fn waits_for_room(&self) -> io::Result<bool> {
        self.0.wait(WRITER_WAITS);
        Ok(self.0.indices()?.2 == RING)
    }
}

impl RingReader {
    /// Takes out what is there, and says how much that was. At most so much that `into` has `limit` bytes.
    #[expect(unsafe_code, reason = "a copy out of memory that two processes share")]
    pub(crate) fn read(&mut self, into: &mut BytesMut, limit: usize) -> io::Result<usize> {
        let (read, _, waits) = self.0.indices()?;
        let count = waits.min(limit.saturating_sub(into.len()));
        into.reserve(count);
        let mut index = read;
        let mut left = count;
        while left > 0 {
            let (place, contiguous) = self.0.place(index);
            let now = left.min(contiguous);
            let room = into.chunk_mut();
            let now = now.min(room.len());
            // SAFETY: `place + now` is at most the end of the ring's bytes; the writer leaves bytes before `written` alone until
            // the index says otherwise; `room` has at least `now` bytes, which are written before they count.
            unsafe {
                let from = self.0.memory.start.as_ptr().add(place);
                std::ptr::copy_nonoverlapping(from, room.as_mut_ptr(), now);
                into.advance_mut(now);
            }
            (index, left) = (index.wrapping_add(now as u64), left - now);
        }
        self.0.index(READ).store(index, Ordering::Release);
        Ok(count)
    }

    /// Whether the writer waits for room, and is to be woken now.
    pub(crate) fn wakes_writer(&self) -> bool {
        self.0.take_waiter(WRITER_WAITS)
    }

    /// Whether nothing is there.
    pub(crate) fn is_empty(&self) -> io::Result<bool> {
        Ok(self.0.indices()?.2 == 0)
    }

    /// Says that this end will wait for bytes. Whether there are none: otherwise it need not wait.
    pub(crate) fn waits_for_bytes(&self) -> io::Result<bool> {
        self.0.wait(READER_WAITS);
        self.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in_whoever_is_faster() {
        let (file, mut writer, _back) = create().unwrap();
        let (_forth, mut reader) = attach(&file).unwrap();
        const LENGTH: usize = 5 * RING + 77;
        let byte = |n: usize| u8::try_from(n * 31 % 251).unwrap();
        let writing = thread::spawn(move || {
            let all: Vec<u8> = (0..LENGTH).map(byte).collect();
            let mut left = &all[..];
            for chunk in (1..).map(|n| n * 7919 % 70_000) {
                let written = writer.write(&left[..left.len().min(chunk)]).unwrap();
                left = &left[written..];
                if left.is_empty() {
                    break;
                }
                thread::yield_now();
            }
        });
        let mut got = BytesMut::new();
        while got.len() < LENGTH {
            let limit = got.len() + 100_003;
            if reader.read(&mut got, limit).unwrap() == 0 {
                thread::yield_now();
            }
        }
        writing.join().unwrap();
        assert!(got.iter().enumerate().all(|(n, got)| *got == byte(n)));
        assert!(reader.is_empty().unwrap());
    }

    #[test]
    fn who_waits_is_woken_once_and_never_waits_for_what_is_there() {
        let (file, mut writer, _back) = create().unwrap();
        let (_forth, mut reader) = attach(&file).unwrap();
        assert!(!writer.wakes_reader(), "nobody waits");
        assert!(reader.waits_for_bytes().unwrap());
        writer.write(b"x").unwrap();
        assert!(writer.wakes_reader());
        assert!(!writer.wakes_reader());
        assert!(!reader.waits_for_bytes().unwrap());
        assert!(!writer.waits_for_room().unwrap());
        assert_eq!(writer.write(&vec![1; 2 * RING]).unwrap(), RING - 1);
        assert!(writer.waits_for_room().unwrap());
        assert_eq!(writer.write(b"y").unwrap(), 0);
        reader.read(&mut BytesMut::new(), 10).unwrap();
        assert!(reader.wakes_writer());
        assert!(!reader.wakes_writer());
    }

    #[test]
    fn indices_that_cannot_be_are_an_error() {
        let (file, mut writer, _back) = create().unwrap();
        let (_forth, mut reader) = attach(&file).unwrap();
        reader.0.index(READ).store(5, Ordering::Relaxed);
        assert!(writer.write(b"x").is_err());
        assert!(reader.read(&mut BytesMut::new(), 10).is_err());
    }

    #[test]
    fn rings_begin_on_pages_of_any_system() {
        assert!(ONE.is_multiple_of(16 << 10) && ALL.is_multiple_of(16 << 10));
    }

    #[test]
    fn memory_of_another_length_is_not_mapped() {
        let file = tempfile::tempfile().unwrap();
        assert!(attach(&file).unwrap_err().to_string().contains("0 bytes in place of"));
    }
}
