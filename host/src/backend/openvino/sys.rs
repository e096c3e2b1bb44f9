//! OpenVINO's C API as owned handles: every unsafe call of the backend is here.

#![expect(unsafe_code, reason = "OpenVINO is a C library; what is safe to call is decided in this file")]

use std::ffi::{CStr, CString, c_char, c_void};
use std::mem::ManuallyDrop;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use openvino_sys as ov;

use crate::backend::Cancel;
use crate::tensor::{Datatype, Tensor, TensorError};

/// Why a call into OpenVINO failed, in its own words.
#[derive(Debug)]
pub(super) struct Error {
    pub(super) cancelled: bool,
    pub(super) text: String,
}

pub(super) type Result<T> = std::result::Result<T, Error>;

impl Error {
    fn new(text: impl Into<String>) -> Error {
        Error { cancelled: false, text: text.into() }
    }
}

impl From<TensorError> for Error {
    fn from(error: TensorError) -> Error {
        Error::new(error.to_string())
    }
}

/// Binds the library at `file` for the rest of the process's life. At most one file may ever be bound.
pub(super) fn bind(file: &Path) -> std::result::Result<(), String> {
    // openvino-sys panics on a missing symbol, and keeps whatever it opened first: so what it is given must
    // be known to be OpenVINO, and to have the newest of the calls made here.
    probe(file)?;
    ov::library::load_from(file)
}

fn probe(file: &Path) -> std::result::Result<(), String> {
    let path = c_path(file).map_err(|error| error.text)?;
    // SAFETY: `path` is a C string; the library's initialisers run, as they would when it is bound.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) };
    if handle.is_null() {
        // SAFETY: dlerror gives null or a C string that lasts until this thread's next dl call.
        let reason = unsafe { owned(libc::dlerror()) };
        return Err(format!("it cannot be opened: {}", reason.unwrap_or_default()));
    }
    let symbol = |name: &CStr| {
        // SAFETY: the handle is open and the name a C string.
        !unsafe { libc::dlsym(handle, name.as_ptr()) }.is_null()
    };
    let (any, new) = (symbol(c"ov_get_openvino_version"), symbol(c"ov_core_compile_model_from_file_props"));
    // SAFETY: the handle is open, and nothing taken from it is kept.
    unsafe { libc::dlclose(handle) };
    match (any, new) {
        (true, true) => Ok(()),
        (true, false) => Err("it is too old".to_owned()),
        _ => Err("it is not OpenVINO's C library".to_owned()),
    }
}

/// The version of the bound library, such as `2026.4.1-22982-e213a147257-releases/2026/4`.
pub(super) fn version() -> Result<String> {
    let mut version = ov::ov_version_t { buildNumber: ptr::null(), description: ptr::null() };
    // SAFETY: `version` is filled by the first call, read while its strings live, and freed once.
    unsafe {
        check(ov::ov_get_openvino_version(&mut version))?;
        let build = owned(version.buildNumber);
        ov::ov_version_free(&mut version);
        build.ok_or_else(|| Error::new("the library does not tell its version"))
    }
}

/// A setting of one compilation.
pub(super) type Property<'a> = (&'a CStr, String);

/// Makes an owning handle of an OpenVINO object and the fn that frees it.
macro_rules! handle {
    ($(#[$doc:meta])* $name:ident, $raw:ty, $free:path) => {
        $(#[$doc])*
        pub(super) struct $name(NonNull<$raw>);

        impl $name {
            /// Runs a call that creates the object.
            fn create(call: impl FnOnce(*mut *mut $raw) -> ov::ov_status_e) -> Result<$name> {
                let mut raw = ptr::null_mut();
                check(call(&mut raw))?;
                NonNull::new(raw).map($name).ok_or_else(|| Error::new("OpenVINO gave no object"))
            }

            fn raw(&self) -> *mut $raw {
                self.0.as_ptr()
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: the handle is the object's only owner, and is gone after this.
                unsafe { $free(self.raw()) }
            }
        }
    };
}

handle!(
    /// Reads and compiles models. OpenVINO lets threads share it.
    Core, ov::ov_core_t, ov::ov_core_free
);
handle!(Model, ov::ov_model_t, ov::ov_model_free);
handle!(
    /// A model compiled for a device. It outlives itself in the requests made from it.
    Compiled, ov::ov_compiled_model_t, ov::ov_compiled_model_free
);
handle!(RawRequest, ov::ov_infer_request_t, ov::ov_infer_request_free);
handle!(RawTensor, ov::ov_tensor_t, ov::ov_tensor_free);
handle!(ConstPort, ov::ov_output_const_port_t, ov::ov_output_const_port_free);

// SAFETY: ov::Core guards its state with locks of its own; its documentation allows calls from many threads.
unsafe impl Send for Core {}
// SAFETY: as above.
unsafe impl Sync for Core {}
// SAFETY: a compiled model is read-only; making requests from several threads is its documented use.
unsafe impl Send for Compiled {}
// SAFETY: as above.
unsafe impl Sync for Compiled {}
// SAFETY: nothing in a request is bound to a thread.
unsafe impl Send for RawRequest {}
// SAFETY: shared only for `cancel`, which OpenVINO allows while another thread waits; see `Run`.
unsafe impl Sync for RawRequest {}

impl Core {
    pub(super) fn new() -> Result<Core> {
        // SAFETY: the call writes a new object to the pointer it is given.
        Core::create(|core| unsafe { ov::ov_core_create(core) })
    }

    /// The devices that have a plugin and a driver, such as `CPU` or `GPU.0`.
    pub(super) fn devices(&self) -> Result<Vec<String>> {
        let mut list = ov::ov_available_devices_t { devices: ptr::null_mut(), size: 0 };
        // SAFETY: the core lives; the list has `size` C strings, is read before it is freed, and freed once.
        unsafe {
            check(ov::ov_core_get_available_devices(self.raw(), &mut list))?;
            let names = (0..list.size).filter_map(|index| owned(*list.devices.add(index))).collect();
            ov::ov_available_devices_free(&mut list);
            Ok(names)
        }
    }

    /// Reads a model without compiling it; `weights` belongs to OpenVINO's own format.
    pub(super) fn read(&self, model: &Path, weights: Option<&Path>) -> Result<Model> {
        let model = c_path(model)?;
        let weights = weights.map(c_path).transpose()?;
        let weights = weights.as_ref().map_or(ptr::null(), |path| path.as_ptr());
        // SAFETY: the core and both strings live through the call; null stands for no weights file.
        Model::create(|out| unsafe { ov::ov_core_read_model(self.raw(), model.as_ptr(), weights, out) })
    }

    pub(super) fn compile(&self, model: &Model, device: &CStr, properties: &[Property]) -> Result<Compiled> {
        with_properties(properties, |count, list| {
            // SAFETY: all that is pointed to lives through the call, and `list` has `count` entries.
            Compiled::create(|out| unsafe {
                ov::ov_core_compile_model_props(self.raw(), model.raw(), device.as_ptr(), count, list, out)
            })
        })
    }

    /// Compiles straight from a file: with a cache folder among the properties, the model need not be read.
    pub(super) fn compile_file(
        &self,
        model: &Path,
        device: &CStr,
        properties: &[Property],
    ) -> Result<Compiled> {
        let model = c_path(model)?;
        with_properties(properties, |count, list| {
            let (model, device) = (model.as_ptr(), device.as_ptr());
            // SAFETY: all that is pointed to lives through the call, and `list` has `count` entries.
            Compiled::create(|out| unsafe {
                ov::ov_core_compile_model_from_file_props(self.raw(), model, device, count, list, out)
            })
        })
    }
}

fn with_properties<T>(
    properties: &[Property],
    call: impl FnOnce(usize, *const ov::ov_property_t) -> Result<T>,
) -> Result<T> {
    let values: Vec<CString> =
        properties.iter().map(|(_, value)| c_string(value.as_bytes())).collect::<Result<_>>()?;
    let list: Vec<_> = properties
        .iter()
        .zip(&values)
        .map(|((key, _), value)| ov::ov_property_t { key: key.as_ptr(), value: value.as_ptr().cast() })
        .collect();
    call(list.len(), list.as_ptr())
}

/// What a model says of one input or output.
#[derive(Debug)]
pub(super) struct PortInfo {
    /// `None` where the model gave the port no name.
    pub(super) name: Option<String>,
    /// `None` for element types that Tenon has no name for.
    pub(super) datatype: Option<Datatype>,
    /// As in [`crate::backend::Port`].
    pub(super) shape: Option<Vec<Option<usize>>>,
}

impl Model {
    /// Inputs and outputs, named as the model names them: compiling renames some of them.
    pub(super) fn ports(&self) -> Result<(Vec<PortInfo>, Vec<PortInfo>)> {
        let raw = self.raw();
        // SAFETY: the model lives through each call, and each call writes only to the pointer it is given.
        unsafe {
            let inputs = ports(
                |count| ov::ov_model_inputs_size(raw, count),
                |index, port| ov::ov_model_const_input_by_index(raw, index, port),
            )?;
            let outputs = ports(
                |count| ov::ov_model_outputs_size(raw, count),
                |index, port| ov::ov_model_const_output_by_index(raw, index, port),
            )?;
            Ok((inputs, outputs))
        }
    }
}

impl Compiled {
    /// Inputs and outputs in the model's order.
    pub(super) fn ports(&self) -> Result<(Vec<PortInfo>, Vec<PortInfo>)> {
        let raw = self.raw();
        // SAFETY: the model lives through each call, and each call writes only to the pointer it is given.
        unsafe {
            let inputs = ports(
                |count| ov::ov_compiled_model_inputs_size(raw, count),
                |index, port| ov::ov_compiled_model_input_by_index(raw, index, port),
            )?;
            let outputs = ports(
                |count| ov::ov_compiled_model_outputs_size(raw, count),
                |index, port| ov::ov_compiled_model_output_by_index(raw, index, port),
            )?;
            Ok((inputs, outputs))
        }
    }

    /// A read-only setting, such as `LOADED_FROM_CACHE`.
    pub(super) fn property(&self, key: &CStr) -> Result<String> {
        let mut value = ptr::null_mut();
        // SAFETY: model and key live through the call, which writes a string that `take` frees.
        unsafe {
            check(ov::ov_compiled_model_get_property(self.raw(), key.as_ptr(), &mut value))?;
            Ok(take(value).unwrap_or_default())
        }
    }

    /// Whether any shape, also of an inner value, is known only in a run.
    pub(super) fn is_dynamic(&self) -> Result<bool> {
        // SAFETY: both models live through their calls; the first call writes a new object to the pointer.
        unsafe {
            let graph = Model::create(|out| ov::ov_compiled_model_get_runtime_model(self.raw(), out))?;
            Ok(ov::ov_model_is_dynamic(graph.raw()))
        }
    }

    pub(super) fn request(&self) -> Result<Request> {
        // SAFETY: the model lives through the call, which writes a new object to the pointer.
        let raw = RawRequest::create(|request| unsafe {
            ov::ov_compiled_model_create_infer_request(self.raw(), request)
        })?;
        Ok(Request(Arc::new(raw)))
    }
}

/// # Safety
/// `port` writes null or a port object that the caller then owns.
unsafe fn ports(
    count: impl FnOnce(*mut usize) -> ov::ov_status_e,
    port: impl Fn(usize, *mut *mut ov::ov_output_const_port_t) -> ov::ov_status_e,
) -> Result<Vec<PortInfo>> {
    let mut size = 0;
    check(count(&mut size))?;
    (0..size).map(|index| ConstPort::create(|out| port(index, out))?.info()).collect()
}

impl ConstPort {
    fn info(&self) -> Result<PortInfo> {
        let mut name = ptr::null_mut();
        // A newer OpenVINO may know element types that the Rust enum does not: read it as a number.
        let mut element = u32::MAX;
        // SAFETY: the port lives; the name is freed by `take`; the enum has the size of a u32.
        let (name, element) = unsafe {
            let named = ov::ov_port_get_any_name(self.raw(), &mut name);
            check(ov::ov_port_get_element_type(self.raw(), (&raw mut element).cast()))?;
            (if named == ov::ov_status_e::OK { take(name) } else { None }, element)
        };
        let name = name.filter(|name| !name.is_empty());
        Ok(PortInfo { name, datatype: datatype(element), shape: self.shape()? })
    }

    fn shape(&self) -> Result<Option<Vec<Option<usize>>>> {
        let unknown = ov::ov_dimension_t { min: 0, max: -1 };
        let mut shape = ov::ov_partial_shape_t { rank: unknown, dims: ptr::null_mut() };
        // SAFETY: the port lives; the shape has `rank` dimensions, is read before it is freed, and freed once.
        unsafe {
            check(ov::ov_port_get_partial_shape(self.raw(), &mut shape))?;
            let rank = fixed(shape.rank);
            let dims = rank.map(|rank| (0..rank).map(|index| fixed(*shape.dims.add(index))).collect());
            ov::ov_partial_shape_free(&mut shape);
            Ok(dims)
        }
    }
}

/// The value of a dimension or rank that the model fixes.
fn fixed(dim: ov::ov_dimension_t) -> Option<usize> {
    (dim.min == dim.max).then(|| usize::try_from(dim.min).ok()).flatten()
}

/// A place in which one inference runs at a time.
pub(super) struct Request(Arc<RawRequest>);

impl Request {
    /// Starts the model on `inputs`, one for each of its inputs, in order.
    ///
    /// Only ever asynchronously: the synchronous call can report success after a failure, and leave the
    /// outputs of an earlier run in place.
    pub(super) fn start(self, inputs: Vec<Tensor>) -> Result<Run> {
        for (index, input) in inputs.iter().enumerate() {
            let tensor = host_tensor(input)?;
            // SAFETY: request and tensor live through the call. The request keeps a reference of its own to
            // the tensor, whose memory `Run` keeps until the run has ended.
            check(unsafe {
                ov::ov_infer_request_set_input_tensor_by_index(self.0.raw(), index, tensor.raw())
            })?;
        }
        // SAFETY: the request lives, every input is set, and `Run` keeps both until the run has ended.
        check(unsafe { ov::ov_infer_request_start_async(self.0.raw()) })?;
        Ok(Run { request: ManuallyDrop::new(self), inputs: ManuallyDrop::new(inputs) })
    }

    /// Waits for the end of a run, but no longer than `slice_ms`; returns as soon as the run has ended.
    fn wait(&self, slice_ms: i64) -> Option<Result<()>> {
        // SAFETY: the request lives.
        match unsafe { ov::ov_infer_request_wait_for(self.0.raw(), slice_ms) } {
            ov::ov_status_e::RESULT_NOT_READY => None,
            status => Some(check(status)),
        }
    }

    fn output(&self, index: usize) -> Result<Tensor> {
        // SAFETY: the request lives, and the call writes a new object to the pointer.
        let tensor = RawTensor::create(|tensor| unsafe {
            ov::ov_infer_request_get_output_tensor_by_index(self.0.raw(), index, tensor)
        })?;
        tensor.copy()
    }
}

/// A run in progress. What it uses is freed with it if it has ended by then, and else never.
pub(super) struct Run {
    request: ManuallyDrop<Request>,
    inputs: ManuallyDrop<Vec<Tensor>>,
}

impl Run {
    /// Waits for the end of the run, and has it end soon once `cancel` is raised. `None` if it does not.
    pub(super) fn wait(&self, cancel: &Cancel) -> Option<Result<()>> {
        // Registered after the start: OpenVINO forgets a cancellation that comes before it.
        let request = Arc::clone(&self.request.0);
        let _hook = cancel.hook(move || request.cancel());
        let mut raised = None;
        loop {
            if cancel.is_raised() {
                self.request.0.cancel();
                if raised.get_or_insert_with(Instant::now).elapsed() > GRACE {
                    return None;
                }
            }
            // The hook tells of a raised cancellation; this loop only of the deadline.
            let slice = cancel.remaining().map_or(MAX_SLICE, |left| left.clamp(MIN_SLICE, MAX_SLICE));
            if let Some(result) = self.request.wait(slice.as_micros().div_ceil(1000) as i64) {
                return Some(result);
            }
        }
    }

    /// Reads the first `outputs` outputs of a run that ended well, and gives the request back.
    pub(super) fn finish(mut self, outputs: usize) -> Result<(Vec<Tensor>, Request)> {
        if !self.has_ended() {
            return Err(Error::new("the run has not ended"));
        }
        let outputs = (0..outputs).map(|index| self.request.output(index)).collect::<Result<_>>()?;
        let request = Request(Arc::clone(&self.request.0));
        self.release();
        std::mem::forget(self);
        Ok((outputs, request))
    }

    pub(super) fn has_ended(&self) -> bool {
        self.request.wait(0).is_some()
    }

    /// To be called once, after the end of the run.
    fn release(&mut self) {
        // SAFETY: both callers make sure that nothing uses the fields again.
        unsafe {
            ManuallyDrop::drop(&mut self.request);
            ManuallyDrop::drop(&mut self.inputs);
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Freeing a request waits for its run, and OpenVINO reads the inputs as long as that lasts.
        if self.has_ended() {
            self.release();
        }
    }
}

/// How long a run may go on after it was cancelled: OpenVINO looks between two nodes, and a whole Loop is one.
const GRACE: Duration = Duration::from_millis(500);
const MIN_SLICE: Duration = Duration::from_millis(1);
const MAX_SLICE: Duration = Duration::from_millis(50);

impl RawRequest {
    fn cancel(&self) {
        // SAFETY: the request lives; OpenVINO allows this call from any thread. It does nothing, and has
        // nothing to report, where no run is in progress.
        let _ = unsafe { ov::ov_infer_request_cancel(self.raw()) };
    }
}

/// A tensor over the bytes of `tensor`, which must outlive every run that uses it.
fn host_tensor(tensor: &Tensor) -> Result<RawTensor> {
    let element = element(tensor.datatype())
        .ok_or_else(|| Error::new(format!("OpenVINO has no {} tensors", tensor.datatype())))?;
    let mut dims = dims(tensor.shape())?;
    let shape = ov::ov_shape_t { rank: dims.len() as i64, dims: dims.as_mut_ptr() };
    let data = tensor.data();
    let aligned = data.as_ptr().addr().is_multiple_of(tensor.datatype().size().unwrap_or(1));
    if aligned && !data.is_empty() {
        let memory: *const c_void = data.as_ptr().cast();
        // SAFETY: the memory has the length that follows from type and shape (an invariant of `Tensor`).
        // OpenVINO takes it as mutable but only reads the inputs of a run.
        return RawTensor::create(|out| unsafe {
            ov::ov_tensor_create_from_host_ptr(element, shape, memory.cast_mut(), out)
        });
    }
    // SAFETY: the shape lives through the call, which copies it.
    let copy = RawTensor::create(|out| unsafe { ov::ov_tensor_create(element, shape, out) })?;
    let (memory, size) = copy.memory()?;
    if size != data.len() {
        return Err(Error::new("OpenVINO gives the tensor another size"));
    }
    // SAFETY: `memory` is `size` bytes long, was just allocated, and so does not overlap with `data`.
    unsafe { ptr::copy_nonoverlapping(data.as_ptr(), memory, size) };
    Ok(copy)
}

fn dims(shape: &[usize]) -> Result<Vec<i64>> {
    shape
        .iter()
        .map(|dim| i64::try_from(*dim).map_err(|_| Error::new(format!("the dimension {dim} is too large"))))
        .collect()
}

impl RawTensor {
    /// The one copy of an output, out of memory that the next run overwrites.
    fn copy(&self) -> Result<Tensor> {
        let mut element = u32::MAX;
        let mut shape = ov::ov_shape_t { rank: 0, dims: ptr::null_mut() };
        // SAFETY: the tensor lives; the enum has the size of a u32; the shape has `rank` dimensions, is read
        // before it is freed, and freed once.
        let dims = unsafe {
            check(ov::ov_tensor_get_element_type(self.raw(), (&raw mut element).cast()))?;
            check(ov::ov_tensor_get_shape(self.raw(), &mut shape))?;
            let dims: Vec<_> = (0..shape.rank.max(0) as usize).map(|i| *shape.dims.add(i) as usize).collect();
            ov::ov_shape_free(&mut shape);
            dims
        };
        let datatype = datatype(element)
            .ok_or_else(|| Error::new("an output has an element type that Tenon does not know"))?;
        let (memory, size) = self.memory()?;
        let data = if size == 0 {
            Bytes::new()
        } else {
            // SAFETY: the tensor owns `size` bytes at `memory`, and no run writes them now.
            Bytes::copy_from_slice(unsafe { std::slice::from_raw_parts(memory, size) })
        };
        Ok(Tensor::new(datatype, dims, data)?)
    }

    /// The tensor's memory and its length in bytes; where that is zero, the pointer may be anything.
    fn memory(&self) -> Result<(*mut u8, usize)> {
        let (mut memory, mut size) = (ptr::null_mut(), 0);
        // SAFETY: the tensor lives, and the calls write only to the pointers they are given.
        unsafe {
            check(ov::ov_tensor_get_byte_size(self.raw(), &mut size))?;
            if size > 0 {
                check(ov::ov_tensor_data(self.raw(), &mut memory))?;
            }
        }
        if memory.is_null() && size > 0 {
            return Err(Error::new("OpenVINO gave a tensor without memory"));
        }
        Ok((memory.cast(), size))
    }
}

/// OpenVINO's element type. It has strings, but its C API cannot read them back, so BYTES have none.
fn element(datatype: Datatype) -> Option<ov::ov_element_type_e> {
    use ov::ov_element_type_e as Element;
    Some(match datatype {
        Datatype::Bool => Element::OV_BOOLEAN,
        Datatype::Uint8 => Element::U8,
        Datatype::Uint16 => Element::U16,
        Datatype::Uint32 => Element::U32,
        Datatype::Uint64 => Element::U64,
        Datatype::Int8 => Element::I8,
        Datatype::Int16 => Element::I16,
        Datatype::Int32 => Element::I32,
        Datatype::Int64 => Element::I64,
        Datatype::Fp16 => Element::F16,
        Datatype::Bf16 => Element::BF16,
        Datatype::Fp32 => Element::F32,
        Datatype::Fp64 => Element::F64,
        Datatype::Bytes => return None,
    })
}

/// The datatype of an element type, BYTES included: a signature may have to name it.
fn datatype(number: u32) -> Option<Datatype> {
    if number == ov::ov_element_type_e::STRING as u32 {
        return Some(Datatype::Bytes);
    }
    Datatype::ALL.into_iter().find(|datatype| element(*datatype).is_some_and(|known| known as u32 == number))
}

fn check(status: ov::ov_status_e) -> Result<()> {
    if status == ov::ov_status_e::OK {
        return Ok(());
    }
    // The message is the process's last one: where calls fail at the same instant it may be the other's.
    // SAFETY: both give null or a C string, the first one ours to free, the second one static.
    let text = unsafe {
        take(ov::ov_get_last_err_msg().cast_mut()).or_else(|| owned(ov::ov_get_error_info(status)))
    };
    let cancelled = status == ov::ov_status_e::INFER_CANCELLED;
    Err(Error { cancelled, text: text.unwrap_or_else(|| format!("{status:?}")) })
}

/// Copies a C string.
///
/// # Safety
/// `text` is null or a C string.
unsafe fn owned(text: *const c_char) -> Option<String> {
    // SAFETY: promised by the caller, but for null.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

/// Copies and frees a C string that OpenVINO allocated.
///
/// # Safety
/// `text` is null or a C string that OpenVINO gave to the caller, who does not use it again.
unsafe fn take(text: *mut c_char) -> Option<String> {
    // SAFETY: promised by the caller, but for null, which `owned` takes for nothing.
    unsafe {
        let copy = owned(text)?;
        ov::ov_free(text);
        Some(copy)
    }
}

fn c_path(path: &Path) -> Result<CString> {
    c_string(path.as_os_str().as_bytes())
}

fn c_string(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::new("a path or setting has a zero byte"))
}
