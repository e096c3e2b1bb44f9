//! Images to tensors: PNG and JPEG decoded within limits, resized, and laid out as models want them.

use std::io::Cursor;

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::{Error, Result, Tensor};

const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
const JPEG_SIGNATURE: &[u8] = b"\xff\xd8\xff";

/// Pixels in rows from the top left, grey or RGB, a byte a channel.
///
/// ```no_run
/// use tenon_sdk::image::{Filter, Image, Scaling};
/// # let body: tenon_sdk::Bytes = Default::default();
///
/// let image = Image::decode(&body)?.rgb().resize(224, 224, Filter::Bilinear);
/// let tensor = image.to_nchw(Scaling::IMAGENET);
/// assert_eq!(tensor.shape(), [1, 3, 224, 224]);
/// # Ok::<(), tenon_sdk::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    width: usize,
    height: usize,
    channels: usize,
    pixels: Vec<u8>,
}

/// How large an image may be. A small file can hold a large image: its dimensions are checked before memory is
/// taken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of width and of height, in pixels.
    pub side: usize,
    /// Of width times height.
    pub pixels: usize,
}

impl Default for Limits {
    /// 8192 pixels a side and 16 million pixels: up to 64 MB while decoding.
    fn default() -> Self {
        Self { side: 8192, pixels: 1 << 24 }
    }
}

/// How a pixel comes from those of another size. The same as Pillow's `BOX`, `BILINEAR` and `LANCZOS`, whose
/// filters widen when an image is made smaller, so that no pixel is skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The mean of the area: for small images, and for making much smaller.
    Area,
    /// Triangle filter: what most vision models were trained with.
    Bilinear,
    /// The sharpest, and the slowest.
    Lanczos,
}

/// What becomes of a pixel's channel: `(value / 255 - mean) / deviation`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaling {
    /// For each channel, of values in 0..=1; the first for a grey image.
    pub mean: [f32; 3],
    /// For each channel; the first for a grey image.
    pub deviation: [f32; 3],
}

impl Scaling {
    /// Values in 0..=1.
    pub const UNIT: Self = Self { mean: [0.0; 3], deviation: [1.0; 3] };
    /// Values in -1..=1.
    pub const SIGNED: Self = Self { mean: [0.5; 3], deviation: [0.5; 3] };
    /// What models trained on ImageNet with torchvision expect.
    pub const IMAGENET: Self = Self { mean: [0.485, 0.456, 0.406], deviation: [0.229, 0.224, 0.225] };

    /// Factor and summand for a channel's bytes.
    fn line(&self, channel: usize) -> (f32, f32) {
        let deviation = self.deviation[channel];
        (1.0 / (255.0 * deviation), -self.mean[channel] / deviation)
    }
}

impl Image {
    /// A PNG or JPEG image within the default [`Limits`].
    pub fn decode(data: &[u8]) -> Result<Self> {
        Self::decode_within(data, Limits::default())
    }

    /// A PNG or JPEG image. Transparent pixels are laid over black; 16-bit channels lose their lower half; a
    /// JPEG's EXIF orientation is not applied.
    ///
    /// The errors are `not-an-image` (422) for anything else or a damaged file, and `image-too-large` (413).
    pub fn decode_within(data: &[u8], limits: Limits) -> Result<Self> {
        if data.starts_with(PNG_SIGNATURE) {
            decode_png(data, limits)
        } else if data.starts_with(JPEG_SIGNATURE) {
            decode_jpeg(data, limits)
        } else {
            Err(not_an_image("the body is neither PNG nor JPEG"))
        }
    }

    /// An image of these pixels, with 1 channel (grey) or 3 (RGB). An error where their number does not fit.
    pub fn new(width: usize, height: usize, channels: usize, pixels: Vec<u8>) -> Result<Self> {
        if !matches!(channels, 1 | 3) {
            return Err(Error::failed(format_args!("an image has 1 or 3 channels, not {channels}")));
        }
        if width == 0 || height == 0 || width.checked_mul(height * channels) != Some(pixels.len()) {
            let bytes = pixels.len();
            return Err(Error::failed(format_args!(
                "{bytes} bytes are no image of {width}x{height}x{channels}"
            )));
        }
        Ok(Self { width, height, channels, pixels })
    }

    /// In pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// In pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// 1 for grey, 3 for RGB.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The bytes, row by row, pixel by pixel, channel by channel.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The image in grey, colours weighed as ITU-R 601 does.
    #[must_use]
    pub fn grey(self) -> Self {
        if self.channels == 1 {
            return self;
        }
        let (pixels, _) = self.pixels.as_chunks::<3>();
        let pixels = pixels.iter().map(|&[r, g, b]| luma(r, g, b)).collect();
        Self { channels: 1, pixels, ..self }
    }

    /// The image in RGB.
    #[must_use]
    pub fn rgb(self) -> Self {
        if self.channels == 3 {
            return self;
        }
        let pixels = self.pixels.iter().flat_map(|&value| [value; 3]).collect();
        Self { channels: 3, pixels, ..self }
    }

    /// The image in another size, its proportions not kept. Sides of 0 become 1.
    #[must_use]
    pub fn resize(self, width: usize, height: usize, filter: Filter) -> Self {
        let (width, height) = (width.max(1), height.max(1));
        if (width, height) == (self.width, self.height) {
            return self;
        }
        let wide = self.resampled_rows(width, filter);
        wide.resampled_columns(height, filter)
    }

    /// The part that starts at `left` and `top`; what lies outside the image is left out. An error where nothing
    /// is left.
    pub fn crop(&self, left: usize, top: usize, width: usize, height: usize) -> Result<Self> {
        let width = width.min(self.width.saturating_sub(left));
        let height = height.min(self.height.saturating_sub(top));
        let row_bytes = self.width * self.channels;
        let rows = self.pixels.chunks_exact(row_bytes).skip(top).take(height);
        let columns = left * self.channels..(left + width) * self.channels;
        let pixels = rows.filter_map(|row| row.get(columns.clone())).flatten().copied().collect();
        Self::new(width, height, self.channels, pixels)
    }

    /// The largest square in the middle.
    #[must_use]
    pub fn centre_square(self) -> Self {
        let side = self.width.min(self.height);
        if self.width == self.height {
            return self;
        }
        let (left, top) = ((self.width - side) / 2, (self.height - side) / 2);
        self.crop(left, top, side, side).expect("a square of the shorter side lies inside")
    }

    /// A tensor `[1, channels, height, width]`: plane after plane.
    pub fn to_nchw(&self, scaling: Scaling) -> Tensor<f32> {
        let plane = self.width * self.height;
        let mut elements = vec![0.0; plane * self.channels];
        for (channel, plane) in elements.chunks_exact_mut(plane).enumerate() {
            let (factor, summand) = scaling.line(channel);
            let values = self.pixels[channel..].iter().step_by(self.channels);
            plane.iter_mut().zip(values).for_each(|(to, &from)| *to = f32::from(from) * factor + summand);
        }
        self.tensor([1, self.channels, self.height, self.width], elements)
    }

    /// A tensor `[1, height, width, channels]`: pixel after pixel.
    pub fn to_nhwc(&self, scaling: Scaling) -> Tensor<f32> {
        let lines = [scaling.line(0), scaling.line(1), scaling.line(2)];
        let scale = |pixel: &[u8]| -> Vec<f32> {
            let scaled = pixel.iter().zip(lines);
            scaled.map(|(&value, (factor, summand))| f32::from(value) * factor + summand).collect()
        };
        let elements = self.pixels.chunks_exact(self.channels).flat_map(scale).collect();
        self.tensor([1, self.height, self.width, self.channels], elements)
    }

    fn tensor(&self, shape: [usize; 4], elements: Vec<f32>) -> Tensor<f32> {
        Tensor::new(shape, elements).expect("an image has a value for each channel of each pixel")
    }

    fn resampled_rows(&self, width: usize, filter: Filter) -> Self {
        if width == self.width {
            return self.clone();
        }
        let windows = windows(self.width, width, filter);
        let mut pixels = Vec::with_capacity(width * self.height * self.channels);
        for row in self.pixels.chunks_exact(self.width * self.channels) {
            for (start, weights) in &windows {
                for channel in 0..self.channels {
                    let values = row[start * self.channels + channel..].iter().step_by(self.channels);
                    let sum: f32 =
                        values.zip(weights).map(|(&value, weight)| f32::from(value) * weight).sum();
                    pixels.push(to_byte(sum));
                }
            }
        }
        Self { width, pixels, ..*self }
    }

    fn resampled_columns(&self, height: usize, filter: Filter) -> Self {
        if height == self.height {
            return self.clone();
        }
        let row_bytes = self.width * self.channels;
        let mut pixels = Vec::with_capacity(row_bytes * height);
        let mut sums = vec![0.0_f32; row_bytes];
        for (start, weights) in windows(self.height, height, filter) {
            sums.fill(0.0);
            for (row, weight) in self.pixels[start * row_bytes..].chunks_exact(row_bytes).zip(weights) {
                sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f32::from(value) * weight);
            }
            pixels.extend(sums.iter().map(|&sum| to_byte(sum)));
        }
        Self { height, pixels, ..*self }
    }
}

/// For each pixel of the new size: where its window on the old ones starts, and their weights.
fn windows(from: usize, to: usize, filter: Filter) -> Vec<(usize, Vec<f32>)> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let reach = filter.reach() * stretch;
    let window = |index: usize| {
        let centre = (index as f64 + 0.5) * scale;
        let start = (centre - reach + 0.5).max(0.0) as usize;
        let end = ((centre + reach + 0.5) as usize).min(from).max(start + 1);
        let weights = (start..end).map(|at| filter.weight((at as f64 - centre + 0.5) / stretch));
        let weights: Vec<f64> = weights.collect();
        let sum: f64 = weights.iter().sum();
        (start, weights.iter().map(|weight| (weight / sum) as f32).collect())
    };
    (0..to).map(window).collect()
}

impl Filter {
    /// How far a pixel sees, in pixels of the larger grid.
    fn reach(self) -> f64 {
        match self {
            Self::Area => 0.5,
            Self::Bilinear => 1.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Area => f64::from(x > -0.5 && x <= 0.5),
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Lanczos if x.abs() < 3.0 => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    let x = x * std::f64::consts::PI;
    if x == 0.0 { 1.0 } else { x.sin() / x }
}

fn to_byte(value: f32) -> u8 {
    (value + 0.5) as u8
}

fn luma(r: u8, g: u8, b: u8) -> u8 {
    ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
}

fn decode_png(data: &[u8], limits: Limits) -> Result<Image> {
    let broken = |error: png::DecodingError| not_an_image(&format!("the PNG is damaged: {error}"));
    let bytes = limits.pixels.saturating_mul(8);
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(data), png::Limits { bytes });
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let header = decoder.read_header_info().map_err(broken)?;
    check_size(header.width as usize, header.height as usize, limits)?;
    let mut reader = decoder.read_info().map_err(broken)?;
    let bytes = reader.output_buffer_size().ok_or_else(|| not_an_image("the PNG is too large"))?;
    let mut pixels = vec![0; bytes];
    let frame = reader.next_frame(&mut pixels).map_err(broken)?;
    pixels.truncate(frame.buffer_size());
    let channels = frame.color_type.samples();
    let (channels, pixels) = match channels {
        2 => (1, over_black::<2, 1>(&pixels)),
        4 => (3, over_black::<4, 3>(&pixels)),
        _ => (channels, pixels),
    };
    Image::new(frame.width as usize, frame.height as usize, channels, pixels)
}

fn decode_jpeg(data: &[u8], limits: Limits) -> Result<Image> {
    let broken =
        |error: zune_jpeg::errors::DecodeErrors| not_an_image(&format!("the JPEG is damaged: {error:?}"));
    let options = DecoderOptions::default().set_max_width(usize::MAX).set_max_height(usize::MAX);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(data), options);
    decoder.decode_headers().map_err(broken)?;
    let info = decoder.info().ok_or_else(|| not_an_image("the JPEG has no header"))?;
    let (width, height) = (usize::from(info.width), usize::from(info.height));
    check_size(width, height, limits)?;
    let (channels, colours) = match decoder.input_colorspace() {
        Some(ColorSpace::Luma) => (1, ColorSpace::Luma),
        _ => (3, ColorSpace::RGB),
    };
    decoder.set_options(options.jpeg_set_out_colorspace(colours));
    let pixels = decoder.decode().map_err(broken)?;
    Image::new(width, height, channels, pixels)
}

fn check_size(width: usize, height: usize, limits: Limits) -> Result<()> {
    if width == 0 || height == 0 {
        return Err(not_an_image("the image has no pixels"));
    }
    if width.max(height) > limits.side || width.saturating_mul(height) > limits.pixels {
        let Limits { side, pixels } = limits;
        let message = format!(
            "{width}x{height} pixels are too many: at most {side} a side and {pixels} in all are taken"
        );
        return Err(Error::new("image-too-large", message).with_status(413));
    }
    Ok(())
}

/// Pixels without their last channel, which says how much of them is seen.
fn over_black<const FROM: usize, const TO: usize>(pixels: &[u8]) -> Vec<u8> {
    let (pixels, _) = pixels.as_chunks::<FROM>();
    let seen = |value: u8, alpha: u8| ((u32::from(value) * u32::from(alpha) + 127) / 255) as u8;
    pixels.iter().flat_map(|pixel| (0..TO).map(|channel| seen(pixel[channel], pixel[FROM - 1]))).collect()
}

fn not_an_image(message: &str) -> Error {
    Error::new("not-an-image", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(width: u32, height: u32, colours: png::ColorType, pixels: &[u8]) -> Vec<u8> {
        let mut data = Vec::new();
        let mut encoder = png::Encoder::new(&mut data, width, height);
        encoder.set_color(colours);
        encoder.write_header().unwrap().write_image_data(pixels).unwrap();
        data
    }

    #[test]
    fn every_kind_of_png_becomes_grey_or_rgb() {
        let check = |colours, pixels: &[u8], channels, expected: &[u8]| {
            let image = Image::decode(&png(1, 1, colours, pixels)).unwrap();
            assert_eq!((image.channels(), image.pixels()), (channels, expected), "{colours:?}");
        };
        check(png::ColorType::Grayscale, &[7], 1, &[7]);
        check(png::ColorType::GrayscaleAlpha, &[200, 0], 1, &[0]);
        check(png::ColorType::Rgb, &[1, 2, 3], 3, &[1, 2, 3]);
        check(png::ColorType::Rgba, &[10, 20, 30, 255], 3, &[10, 20, 30]);
    }

    #[test]
    fn what_is_no_image_is_said() {
        let whole = png(4, 4, png::ColorType::Grayscale, &[9; 16]);
        let code = |data: &[u8]| Image::decode(data).unwrap_err().code().to_owned();
        assert_eq!(code(b""), "not-an-image");
        assert_eq!(code(b"GIF89a"), "not-an-image");
        assert_eq!(code(PNG_SIGNATURE), "not-an-image");
        assert_eq!(code(&whole[..whole.len() / 2]), "not-an-image");
        assert_eq!(code(b"\xff\xd8\xff\xe0 nonsense"), "not-an-image");
        let small = Limits { side: 3, pixels: 9 };
        assert_eq!(Image::decode_within(&whole, small).unwrap_err().code(), "image-too-large");
    }

    #[test]
    fn area_is_the_mean() {
        let image = Image::new(4, 2, 1, vec![0, 10, 20, 30, 40, 50, 60, 70]).unwrap();
        assert_eq!(image.resize(2, 1, Filter::Area).pixels(), [25, 45]);
    }

    #[test]
    fn an_even_image_stays_even_with_every_filter() {
        for filter in [Filter::Area, Filter::Bilinear, Filter::Lanczos] {
            for (width, height) in [(3, 5), (16, 1), (1, 33), (7, 7)] {
                let image = Image::new(7, 9, 3, vec![99; 189]).unwrap().resize(width, height, filter);
                assert_eq!(image.pixels(), vec![99; width * height * 3], "{filter:?} {width}x{height}");
            }
        }
    }

    #[test]
    fn planes_and_pixels_are_scaled_alike() {
        let image = Image::new(2, 1, 3, vec![0, 51, 102, 153, 204, 255]).unwrap();
        let planes = image.to_nchw(Scaling::UNIT);
        assert_eq!(planes.shape(), [1, 3, 1, 2]);
        let close = |a: &[f32], b: [f32; 6]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(close(&planes, [0.0, 0.6, 0.2, 0.8, 0.4, 1.0]));
        let pixels = image.to_nhwc(Scaling::SIGNED);
        assert_eq!(pixels.shape(), [1, 1, 2, 3]);
        assert!(close(&pixels, [-1.0, -0.6, -0.2, 0.2, 0.6, 1.0]));
    }

    #[test]
    fn a_crop_stays_inside() {
        let image = Image::new(3, 2, 1, vec![1, 2, 3, 4, 5, 6]).unwrap();
        assert_eq!(image.crop(1, 0, 9, 9).unwrap().pixels(), [2, 3, 5, 6]);
        assert!(image.crop(3, 0, 1, 1).is_err());
        assert_eq!(image.centre_square().width(), 2);
    }
}
