//! Tensors of the host: too many, too large, lying, and dropped twice.

use std::mem::forget;

use tenon_sdk::bindings::tenon::function::tensors::{Datatype, Tensor};

use crate::told;

pub(crate) fn behave(name: &str, argument: &str) -> Option<String> {
    let number = || argument.parse::<usize>().unwrap_or(16);
    Some(match name {
        "handles" => until_refused(4),
        "many-host-bytes" => until_refused(number() << 20),
        "spin-in-hostcall" => spin_in_hostcall(),
        "lie-length" => create(Datatype::Fp32, &[2, 2], &[0; 12]),
        "lie-bytes" => create(Datatype::Bytes, &[1], &[200, 0, 0, 0, 1]),
        "lie-count" => create(Datatype::Bytes, &[3], &[0; 4]),
        "lie-bool" => create(Datatype::Bool, &[1], &[7]),
        "absurd-shape" => create(Datatype::Uint8, &[u64::MAX, u64::MAX], &[0; 1]),
        "overflowing-shape" => create(Datatype::Fp64, &[1 << 61, 8], &[]),
        "deep-shape" => create(Datatype::Uint8, &[1; 10_000], &[0]),
        "double-drop" => double_drop(),
        "forged-handle" => forged_handle(),
        _ => return None,
    })
}

fn create(datatype: Datatype, shape: &[u64], data: &[u8]) -> String {
    told(Tensor::create(datatype, shape, data), |tensor| format!("created {} bytes", tensor.size()))
}

fn until_refused(bytes: usize) -> String {
    let data = vec![0; bytes];
    for count in 0_u64.. {
        match Tensor::create(Datatype::Uint8, &[bytes as u64], &data) {
            Ok(tensor) => forget(tensor),
            Err(error) => return format!("refused after {count}: {error}"),
        }
    }
    String::new()
}

fn spin_in_hostcall() -> String {
    let tensor = Tensor::create(Datatype::Uint8, &[1], &[0]);
    told(tensor, |tensor| {
        loop {
            std::hint::black_box(tensor.size());
        }
    })
}

#[expect(unsafe_code, reason = "the host's own name for dropping a handle")]
#[link(wasm_import_module = "tenon:function/tensors@0.1.0")]
unsafe extern "C" {
    #[link_name = "[resource-drop]tensor"]
    fn drop_tensor(handle: u32);
}

#[expect(unsafe_code, reason = "no safe code can drop a handle twice")]
fn double_drop() -> String {
    let tensor = Tensor::create(Datatype::Uint8, &[1], &[0]);
    told(tensor, |tensor| {
        let handle = tensor.take_handle();
        // SAFETY: the host checks handles; this one is gone after the first line.
        unsafe {
            drop_tensor(handle);
            drop_tensor(handle);
        }
        "dropped twice".to_owned()
    })
}

#[expect(unsafe_code, reason = "no safe code can forge a handle")]
fn forged_handle() -> String {
    // SAFETY: the host checks handles; this one was never given.
    unsafe { drop_tensor(12_345) };
    "dropped a handle that never was".to_owned()
}
