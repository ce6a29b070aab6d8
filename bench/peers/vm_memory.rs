//! The vm-memory crate as a peer of bench/access.c: a shared object with a C face, loaded by it, so
//! that both are measured in one run. `cost` functions do `n` operations of the kind that the row is
//! about; the random numbers are the same as bench/access.c's.
use std::os::raw::c_void;
use std::sync::atomic::Ordering::Relaxed;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

struct Peer {
    mem: GuestMemoryMmap,
    base: Vec<u64>,
    size: u64,
    seed: u64,
    sum: u64,
}

impl Peer {
    #[inline(always)]
    fn next(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed
    }

    #[inline(always)]
    fn somewhere(&self, r: u64) -> GuestAddress {
        let i = ((r & 0xffff_ffff) * self.base.len() as u64) >> 32;
        GuestAddress((self.base[i as usize] + (((r >> 32) * (self.size - 8)) >> 32)) & !7)
    }
}

/// A map of `n` regions of `size` bytes each at `base[i]`; null when it cannot be made.
///
/// # Safety
/// `base` points to `n` addresses.
#[no_mangle]
pub unsafe extern "C" fn peer_new(base: *const u64, n: usize, size: u64) -> *mut c_void {
    let base = std::slice::from_raw_parts(base, n).to_vec();
    let ranges: Vec<_> = base.iter().map(|&b| (GuestAddress(b), size as usize)).collect();
    match GuestMemoryMmap::from_ranges(&ranges) {
        Ok(mem) => Box::into_raw(Box::new(Peer { mem, base, size, seed: 88172645463325252, sum: 0 })).cast(),
        Err(_) => std::ptr::null_mut(),
    }
}

/// # Safety
/// `p` is from peer_new() and not used again.
#[no_mangle]
pub unsafe extern "C" fn peer_free(p: *mut c_void) {
    drop(Box::from_raw(p.cast::<Peer>()));
}

/// Read 8 aligned bytes at random, n times, in the crate's fastest way (read_obj() takes three times as
/// long).
///
/// # Safety
/// `p` is from peer_new().
#[no_mangle]
pub unsafe extern "C" fn peer_read(p: *mut c_void, n: u64) {
    let p = &mut *p.cast::<Peer>();
    for _ in 0..n {
        let r = p.next();
        let v: u64 = p.mem.load(p.somewhere(r), Relaxed).unwrap_or(0);
        p.sum = p.sum.wrapping_add(v);
    }
}

/// Write 8 aligned bytes at random, n times, likewise.
///
/// # Safety
/// `p` is from peer_new().
#[no_mangle]
pub unsafe extern "C" fn peer_write(p: *mut c_void, n: u64) {
    let p = &mut *p.cast::<Peer>();
    for _ in 0..n {
        let r = p.next();
        let at = p.somewhere(r);
        p.sum = p.sum.wrapping_add(p.mem.store(r, at, Relaxed).is_ok() as u64);
    }
}

/// Copy 4 KiB out, n times.
///
/// # Safety
/// `p` is from peer_new().
#[no_mangle]
pub unsafe extern "C" fn peer_copy(p: *mut c_void, n: u64) {
    let p = &mut *p.cast::<Peer>();
    let mut page = [0u8; 4096];
    for i in 0..n {
        let _ = p.mem.read_slice(&mut page, GuestAddress(p.base[0]));
        p.sum = p.sum.wrapping_add(u64::from(std::ptr::read_volatile(&page[(i & 4095) as usize])));
    }
}

/// Take the region in the middle out of the map and put it back, n times: two new maps each.
///
/// # Safety
/// `p` is from peer_new().
#[no_mangle]
pub unsafe extern "C" fn peer_toggle(p: *mut c_void, n: u64) {
    let p = &mut *p.cast::<Peer>();
    let at = GuestAddress(p.base[p.base.len() / 2]);
    for _ in 0..n {
        if let Ok((without, region)) = p.mem.remove_region(at, p.size) {
            p.mem = without.insert_region(region).unwrap_or(without);
        }
    }
}
