// Decodes images and runs the network, so that the page never waits. The page starts it from a Blob and sends
//   {kind: 'part', name, text}       a piece of a payload: base64 of a gzip file, in order
//   {kind: 'start', settings, …}     when all pieces are here
//   {kind: 'classify', id, source}   a File, or an ImageBitmap of a camera
// and gets {kind: 'progress'}, {kind: 'ready'}, {kind: 'failed'}, {kind: 'result', id, …} and {kind: 'refused', id, …}.
'use strict'

const MAX_BYTES = 2 ** 30
const MAX_PIXELS = 120e6
const TILE = 4096          // pixels of the longest side of what is read from an image at once
const TILE_ROWS = 256

let settings
let session
let ort


// ---- what the file carries ------------------------------------------------------------------------------------------

const payloads = new Map()  // name -> {writer, content: promise of a Uint8Array}
let unpacked = 0

function payload(name) {
  if (!payloads.has(name)) {
    const gunzip = new DecompressionStream('gzip')
    const content = new Response(gunzip.readable).arrayBuffer()
    payloads.set(name, {writer: gunzip.writable.getWriter(), content})
  }
  return payloads.get(name)
}

function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text)
  const binary = atob(text)
  const bytes = new Uint8Array(binary.length)
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i)
  return bytes
}

async function addPart(name, text) {
  await payload(name).writer.write(fromBase64(text))
  unpacked += text.length
  postMessage({kind: 'progress', unpacked})
}

async function contentOf(name) {
  const {writer, content} = payload(name)
  await writer.close()
  const bytes = new Uint8Array(await content)
  payloads.delete(name)
  return bytes
}


// ---- the network ----------------------------------------------------------------------------------------------------

async function start(message) {
  settings = message.settings
  const module = URL.createObjectURL(new Blob([await contentOf('runtime')], {type: 'text/javascript'}))
  ort = await import(module)
  ort.env.logLevel = 'error'
  ort.env.wasm.wasmBinary = (await contentOf('wasm')).buffer
  ort.env.wasm.numThreads = message.threads
  checkReadback()
  const network = await contentOf('network')
  const attempts = []
  if (settings.webgpu && await hasWebGpu()) attempts.push('webgpu')
  attempts.push('wasm')
  for (const backend of attempts) {
    try {
      session = await ort.InferenceSession.create(network, {executionProviders: [backend], logSeverityLevel: 3})
      const difference = await selfTest()
      const agrees = difference <= settings.probe.tolerance
      if (agrees || backend === 'wasm') {
        postMessage({kind: 'ready', backend, threads: message.threads, agrees})
        return
      }
    } catch (error) {
      if (backend === 'wasm') throw error
    }
    await session?.release()
  }
}

async function hasWebGpu() {
  try {
    return Boolean(await navigator.gpu?.requestAdapter())
  } catch {
    return false
  }
}

// Some browsers answer with slightly false colours, against sites that recognise people by them.
function checkReadback() {
  const canvas = new OffscreenCanvas(16, 16)
  const context = canvas.getContext('2d', {willReadFrequently: true})
  const pixels = new ImageData(16, 16)
  for (let i = 0; i < pixels.data.length; i++) pixels.data[i] = i % 4 === 3 ? 255 : (37 * i) & 255
  context.putImageData(pixels, 0, 0)
  const found = context.getImageData(0, 0, 16, 16).data
  if (found.some((value, i) => value !== pixels.data[i])) throw new Refused('readback')
}

// How far the logits of one image, the same as in page.py, are from those that the file says.
async function selfTest() {
  const [height, width] = settings.imgSize
  const pixels = new Uint8Array(height * width * 3)
  let i = 0
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let channel = 0; channel < 3; channel++) pixels[i++] = (3 * x + 5 * y + 80 * channel + (x * y >> 3)) & 255
    }
  }
  const {logits} = await run(pixels)
  let difference = 0
  for (let k = 0; k < logits.length; k++) {
    const distance = Math.abs(logits[k] - settings.probe.logits[k])
    difference = distance > difference || Number.isNaN(distance) ? distance : difference
  }
  return difference
}

async function run(pixels) {
  const [height, width] = settings.imgSize
  const outputs = await session.run({pictures: new ort.Tensor('uint8', pixels, [1, height, width, 3])})
  const {attention} = outputs
  const map = attention && {width: attention.dims[2], height: attention.dims[1], data: attention.data}
  return {logits: outputs.logits.data, certainty: outputs.certainty.data[0], map}
}

async function classify({id, source}) {
  const begun = performance.now()
  const pixels = await networkInput(source)
  const decoded = performance.now()
  const {logits, certainty, map} = await run(pixels)
  if (!logits.every(Number.isFinite)) throw new Error('the network gives logits that are not finite')
  postMessage({kind: 'result', id, probabilities: softmax(logits, settings.temperature), certainty, map,
               decodeMs: decoded - begun, networkMs: performance.now() - decoded})
}

function softmax(logits, temperature) {
  const largest = Math.max(...logits)
  const powers = Float32Array.from(logits, value => Math.exp((value - largest) / temperature))
  const sum = powers.reduce((a, b) => a + b, 0)
  return powers.map(value => value / sum)
}


// ---- from a file to the network's input -----------------------------------------------------------------------------
// As common/data/images.py and common/data/transforms.py do.

class Refused extends Error {}  // its message is one of the keys of TEXTS in page.js

async function networkInput(source) {
  if (source instanceof ImageBitmap) {
    const image = readPixels(source, 1)
    source.close()
    return fit(image)
  }
  if (source.size === 0) throw new Refused('empty')
  if (source.size > MAX_BYTES) throw new Refused('tooLarge')
  const bytes = new Uint8Array(await source.arrayBuffer())
  const type = sniff(bytes)
  if (!type) throw new Refused('unknownFormat')
  checkWhole(bytes, type)
  if (type === 'image/png' && isDeepGrey(bytes)) return fit(await decodeDeepGrey(bytes))
  let bitmap
  try {
    bitmap = await createImageBitmap(new Blob([bytes], {type}), {colorSpaceConversion: 'none'})
  } catch {
    throw new Refused(DECODED_EVERYWHERE.has(type) ? 'damaged' : 'undecodable')
  }
  try {
    if (bitmap.width * bitmap.height > MAX_PIXELS) throw new Refused('tooManyPixels')
    return fit(readPixels(bitmap, type === 'image/jpeg' ? draftFactor(bitmap) : 1))
  } finally {
    bitmap.close()
  }
}

const DECODED_EVERYWHERE = new Set(['image/jpeg', 'image/png', 'image/gif', 'image/webp', 'image/bmp'])

function sniff(bytes) {
  const text = String.fromCharCode(...bytes.subarray(0, 16))
  if (text.startsWith('\xff\xd8\xff')) return 'image/jpeg'
  if (text.startsWith('\x89PNG\r\n\x1a\n')) return 'image/png'
  if (text.startsWith('GIF87a') || text.startsWith('GIF89a')) return 'image/gif'
  if (text.startsWith('RIFF') && text.startsWith('WEBP', 8)) return 'image/webp'
  if (text.startsWith('BM')) return 'image/bmp'
  if (text.startsWith('\0\0\x01\0')) return 'image/x-icon'
  if (text.startsWith('II*\0') || text.startsWith('MM\0*')) return 'image/tiff'
  if (text.startsWith('ftyp', 4)) return text.startsWith('avi', 8) ? 'image/avif' : 'image/heic'
  return ''
}

// Browsers show what they have of a file that was cut off; Pillow refuses it, and half an image gets a wrong class.
function checkWhole(bytes, type) {
  const view = new DataView(bytes.buffer)
  if (type === 'image/jpeg') checkWholeJpeg(bytes)
  if (type === 'image/png') {
    for (const chunk of pngChunks(bytes)) {
      if (chunk.end > bytes.length) throw new Refused('cut')
      if (chunk.name === 'IHDR' && view.getUint32(chunk.start) * view.getUint32(chunk.start + 4) > MAX_PIXELS) {
        throw new Refused('tooManyPixels')
      }
    }
  }
  if (type === 'image/webp' && bytes.length < 8 + view.getUint32(4, true)) throw new Refused('cut')
  if (type === 'image/bmp') {
    if (bytes.length < 34) throw new Refused('cut')
    if (view.getUint32(14, true) < 40) return  // of OS/2
    const width = Math.abs(view.getInt32(18, true))
    const height = Math.abs(view.getInt32(22, true))
    const row = Math.ceil(width * view.getUint16(28, true) / 32) * 4
    const isCompressed = ![0, 3].includes(view.getUint32(30, true))
    if (width * height > MAX_PIXELS) throw new Refused('tooManyPixels')
    if (!isCompressed && bytes.length < view.getUint32(10, true) + row * height) throw new Refused('cut')
  }
  if (type === 'image/gif') checkWholeGif(bytes)
}

function checkWholeJpeg(bytes) {
  let i = 2
  while (i + 1 < bytes.length) {
    if (bytes[i] !== 0xff) {  // image data
      i = bytes.indexOf(0xff, i)
      if (i < 0) break
      continue
    }
    const marker = bytes[i + 1]
    if (marker === 0xd9) return
    const isAlone = marker === 0 || marker === 0xff || marker === 1 || (marker >= 0xd0 && marker <= 0xd8)
    if (isAlone) {
      i += marker === 0xff ? 1 : 2
      continue
    }
    const isFrame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)
    if (isFrame && i + 8 < bytes.length) {
      const height = bytes[i + 5] * 256 + bytes[i + 6]
      const width = bytes[i + 7] * 256 + bytes[i + 8]
      if (width * height > MAX_PIXELS) throw new Refused('tooManyPixels')
    }
    i += 2 + bytes[i + 2] * 256 + bytes[i + 3]
  }
  throw new Refused('cut')
}

// The first frame is all that counts.
function checkWholeGif(bytes) {
  const tableBytes = flags => flags & 128 ? 3 * 2 ** ((flags & 7) + 1) : 0
  let i = 13 + tableBytes(bytes[10])
  while (i < bytes.length) {
    const isImage = bytes[i] === 0x2c
    if (isImage) i += 11 + tableBytes(bytes[i + 9])
    else if (bytes[i] === 0x21) i += 2
    else break
    while (i < bytes.length && bytes[i] !== 0) i += 1 + bytes[i]
    i += 1
    if (isImage && i <= bytes.length) return
  }
  throw new Refused('cut')
}

function* pngChunks(bytes) {
  const view = new DataView(bytes.buffer)
  let i = 8
  while (i + 8 <= bytes.length) {
    const start = i + 8
    const length = view.getUint32(i)
    const name = String.fromCharCode(...bytes.subarray(i + 4, start))
    yield {name, start, length, end: start + length + 4}
    if (name === 'IEND') return
    i = start + length + 4
  }
}


// ---- PNG of 16 bits of grey, which a browser would round to 8 by itself ----------------------------------------------

function isDeepGrey(bytes) {
  return bytes[24] === 16 && bytes[25] === 0
}

async function decodeDeepGrey(bytes) {
  const view = new DataView(bytes.buffer)
  const width = view.getUint32(16)
  const height = view.getUint32(20)
  let significant = 0
  const data = []
  for (const {name, start, length} of pngChunks(bytes)) {
    if (name === 'sBIT') significant = bytes[start]
    if (name === 'IDAT') data.push(bytes.subarray(start, start + length))
  }
  let rows
  try {
    const inflated = new Blob(data).stream().pipeThrough(new DecompressionStream('deflate'))
    rows = new Uint8Array(await new Response(inflated).arrayBuffer())
  } catch {
    throw new Refused('damaged')
  }
  const passes = bytes[28] ? [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2],
                              [0, 1, 1, 2]] : [[0, 0, 1, 1]]  // [left, top, step, step down] of Adam7, or of none
  const values = new Uint16Array(width * height)
  let offset = 0
  for (const [left, top, across, down] of passes) {
    const columns = Math.ceil((width - left) / across)
    const lines = Math.ceil((height - top) / down)
    if (columns <= 0 || lines <= 0) continue
    let above = new Uint8Array(2 * columns)
    for (let line = 0; line < lines; line++) {
      if (offset + 1 + 2 * columns > rows.length) throw new Refused('cut')
      const row = rows.subarray(offset + 1, offset + 1 + 2 * columns)
      unfilter(rows[offset], row, above)
      for (let column = 0; column < columns; column++) {
        values[(top + line * down) * width + left + column * across] = row[2 * column] * 256 + row[2 * column + 1]
      }
      above = row
      offset += 1 + 2 * columns
    }
  }
  return {width, height, data: greyToRgb(scaleGrey(values, significant))}
}

function unfilter(kind, row, above) {
  for (let i = 0; i < row.length; i++) {
    const left = i < 2 ? 0 : row[i - 2]
    const up = above[i]
    const corner = i < 2 ? 0 : above[i - 2]
    if (kind === 1) row[i] += left
    else if (kind === 2) row[i] += up
    else if (kind === 3) row[i] += (left + up) >> 1
    else if (kind === 4) {
      const guess = left + up - corner
      const distances = [Math.abs(guess - left), Math.abs(guess - up), Math.abs(guess - corner)]
      if (distances[0] <= distances[1] && distances[0] <= distances[2]) row[i] += left
      else row[i] += distances[1] <= distances[2] ? up : corner
    }
  }
}

// White is at as many bits as BIT_DEPTH says, or else the file, if its writer has not scaled them to 16.
function scaleGrey(values, significant) {
  let bits = settings.bitDepth
  if (!bits) {
    bits = 16
    if (significant >= 8 && significant < 16) {
      const step = 2 ** (16 - significant)
      const isUnscaled = values.every(value => value < 2 ** significant) && values.some(value => value % step > 1)
      if (isUnscaled) bits = significant
    }
  }
  const shift = Math.max(bits - 16, 0)
  const white = 2 ** Math.min(bits, 16) - 1
  return Uint8Array.from(values, value => Math.floor(Math.min(value >> shift, white) * 255 / white))
}

function greyToRgb(grey) {
  const rgb = new Uint8Array(3 * grey.length)
  for (let i = 0; i < grey.length; i++) rgb.fill(grey[i], 3 * i, 3 * i + 3)
  return rgb
}


// ---- pixels ---------------------------------------------------------------------------------------------------------

// By which a large JPEG is reduced, so that no side falls below `atLeast`, as Pillow's draft does.
function draftFactor({width, height}) {
  const scale = Math.floor(Math.min(width, height) / settings.atLeast)
  return [8, 4, 2].find(factor => scale >= factor) ?? 1
}

// The RGB pixels of a bitmap on white, each the mean of factor × factor. They are read in tiles: canvases have limits.
function readPixels(bitmap, factor) {
  const width = Math.ceil(bitmap.width / factor)
  const height = Math.ceil(bitmap.height / factor)
  const data = new Uint8Array(width * height * 3)
  const canvas = new OffscreenCanvas(Math.min(bitmap.width, TILE), Math.min(bitmap.height, TILE_ROWS))
  const context = canvas.getContext('2d', {willReadFrequently: true})
  context.fillStyle = 'white'
  for (let top = 0; top < bitmap.height; top += TILE_ROWS) {
    for (let left = 0; left < bitmap.width; left += TILE) {
      const tileWidth = Math.min(TILE, bitmap.width - left)
      const tileHeight = Math.min(TILE_ROWS, bitmap.height - top)
      context.fillRect(0, 0, tileWidth, tileHeight)
      context.drawImage(bitmap, left, top, tileWidth, tileHeight, 0, 0, tileWidth, tileHeight)
      const tile = context.getImageData(0, 0, tileWidth, tileHeight)
      reduceInto(data, width, tile, left / factor, top / factor, factor)
    }
  }
  return {width, height, data}
}

function reduceInto(data, width, tile, left, top, factor) {
  const columns = Math.ceil(tile.width / factor)
  const rows = Math.ceil(tile.height / factor)
  for (let row = 0; row < rows; row++) {
    const y1 = Math.min((row + 1) * factor, tile.height)
    for (let column = 0; column < columns; column++) {
      const x1 = Math.min((column + 1) * factor, tile.width)
      let red = 0
      let green = 0
      let blue = 0
      for (let y = row * factor; y < y1; y++) {
        for (let i = 4 * (y * tile.width + column * factor); i < 4 * (y * tile.width + x1); i += 4) {
          red += tile.data[i]
          green += tile.data[i + 1]
          blue += tile.data[i + 2]
        }
      }
      const count = (y1 - row * factor) * (x1 - column * factor)
      const place = 3 * ((top + row) * width + left + column)
      data[place] = Math.round(red / count)
      data[place + 1] = Math.round(green / count)
      data[place + 2] = Math.round(blue / count)
    }
  }
}

// Image {width, height, data: RGB} -> RGB of the network's size: squeezed or, where training had a CROP, its middle.
function fit(image) {
  const [height, width] = settings.imgSize
  const {crop} = settings
  if (crop === null) return resize(image, width, height).data
  const longest = 50 * Math.min(image.width, image.height)
  image = middle(image, Math.min(image.width, longest), Math.min(image.height, longest))
  const ratio = Math.min(image.height / Math.floor(height / crop), image.width / Math.floor(width / crop))
  image = resize(image, roundHalfToEven(image.width / ratio), roundHalfToEven(image.height / ratio))
  return middle(image, width, height).data
}

function roundHalfToEven(value) {
  const below = Math.floor(value)
  if (value - below !== 0.5) return Math.round(value)
  return below % 2 === 0 ? below : below + 1
}

// The middle of an image, with a black border where the image is smaller.
function middle(image, width, height) {
  const offset = rest => rest > 0 ? roundHalfToEven(rest / 2) : -Math.floor(-rest / 2)
  const left = offset(image.width - width)
  const top = offset(image.height - height)
  const data = new Uint8Array(width * height * 3)
  for (let y = Math.max(0, -top); y < Math.min(height, image.height - top); y++) {
    const first = Math.max(0, -left)
    const last = Math.min(width, image.width - left)
    const start = 3 * ((y + top) * image.width + first + left)
    data.set(image.data.subarray(start, start + 3 * (last - first)), 3 * (y * width + first))
  }
  return {width, height, data}
}

// As Pillow resizes: first across, then down, each with weights of 22 bits. It is the same to the bit, except that
// Pillow 13 goes down first in tall images, which changes a few values by 1.
function resize(image, width, height) {
  let {data} = image
  if (width !== image.width) {
    const across = weightsFor(image.width, width)
    data = resample(data, across, image.height, width, 3, 3 * image.width, 3, 3 * width)
  }
  if (height !== image.height) {
    const down = weightsFor(image.height, height)
    data = resample(data, down, width, height, 3 * width, 3, 3 * width, 3)
  }
  return {width, height, data}
}

const FILTERS = {
  bilinear: {support: 1, weight: x => Math.max(0, 1 - Math.abs(x))},
  bicubic: {support: 2, weight: x => {
    const d = Math.abs(x)
    if (d < 1) return (1.5 * d - 2.5) * d * d + 1
    return d < 2 ? ((-0.5 * d + 2.5) * d - 4) * d + 2 : 0
  }}}

// For each place of the result: where its source begins, and the weights of the pixels from there on.
function weightsFor(from, to) {
  const filter = FILTERS[settings.interpolation]
  const scale = from / to
  const stretch = Math.max(scale, 1)
  const shrink = 1 / stretch
  const support = filter.support * stretch
  const places = []
  for (let place = 0; place < to; place++) {
    const centre = (place + 0.5) * scale
    const begin = Math.max(0, Math.trunc(centre - support + 0.5))
    const end = Math.min(from, Math.trunc(centre + support + 0.5))
    const weights = []
    let sum = 0
    for (let i = begin; i < end; i++) {
      const weight = filter.weight((i - centre + 0.5) * shrink)
      weights.push(weight)
      sum += weight
    }
    const fixed = weights.map(weight => {
      const share = weight / sum * 2 ** 22
      return Math.trunc(share < 0 ? share - 0.5 : share + 0.5)
    })
    places.push({begin, weights: Int32Array.from(fixed)})
  }
  return places
}

// Along one direction, for `lines` lines in the other one. Strides are in bytes.
function resample(data, places, lines, size, step, lineStep, newStep, newLineStep) {
  const result = new Uint8ClampedArray(lines * size * 3)
  for (let line = 0; line < lines; line++) {
    for (let place = 0; place < size; place++) {
      const {begin, weights} = places[place]
      let red = 2 ** 21
      let green = 2 ** 21
      let blue = 2 ** 21
      let from = line * lineStep + begin * step
      for (let i = 0; i < weights.length; i++) {
        red += data[from] * weights[i]
        green += data[from + 1] * weights[i]
        blue += data[from + 2] * weights[i]
        from += step
      }
      const to = line * newLineStep + place * newStep
      result[to] = red >> 22
      result[to + 1] = green >> 22
      result[to + 2] = blue >> 22
    }
  }
  return new Uint8Array(result.buffer)
}


// ---- messages, one after the other ----------------------------------------------------------------------------------

let turn = Promise.resolve()

async function handle(message) {
  try {
    if (message.kind === 'part') await addPart(message.name, message.text)
    if (message.kind === 'start') await start(message)
    if (message.kind === 'classify') await classify(message)
  } catch (error) {
    const kind = message.kind === 'classify' ? 'refused' : 'failed'
    const reason = error instanceof Refused ? error.message : 'unexpected'
    postMessage({kind, id: message.id, reason, detail: String(error?.message ?? error)})
  }
}

onmessage = event => {
  turn = turn.then(() => handle(event.data))
}
