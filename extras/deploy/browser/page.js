'use strict'

const MOST_ROWS = 300       // of the table that are shown; the download has all
const LIVE_FRAMES = 8       // of the camera whose probabilities are averaged
const MOST_THREADS = 4
const MAP_SIDE = 512        // pixels of the longer side of the map of where the network looked
const DARKEST = 215         // of 255, where it did not look at all
const IMAGE_NAME = /\.(jpe?g|jfif|png|apng|gif|webp|bmp|dib|avif|heic|heif|ico|tiff?)$/i

const TEXTS = {
  en: {
    title: 'Image classifier',
    subtitle: (count, names) => `It tells ${count} classes apart: ${names}`,
    unpacking: 'Unpacking the network …', starting: 'Starting the network …',
    drop: 'Drop images or a folder here', touch: 'Choose or take a photo', paste: 'or paste an image from the clipboard',
    choose: 'Choose images', chooseFolder: 'Choose a folder', photograph: 'Take a photo', live: 'Live camera',
    look: 'Where it looked', stopLive: 'Stop the camera', camera: 'Live camera, averaged over the last frames',
    confident: share => `Confidence ${share}`, certain: share => `, certainty ${share}`,
    unlike: 'It is unlike the images by which the network was validated: do not rely on the answer.',
    unknown: 'unknown', nearest: (name, share) => `Certainty ${share}; the nearest class is ${name}`,
    progress: (done, total) => `${done} of ${total} images`, finished: total => total === 1 ? '1 image' : `${total} images`,
    someBad: count => `, ${count} unreadable`,
    stop: 'Stop', download: 'Download as CSV', clear: 'Clear', more: count => `… and ${count} more, all in the CSV`,
    image: 'Image', class: 'Class', confidence: 'Confidence', certainty: 'Certainty', none: 'There are no images in it.',
    options: 'Unknown images', unknownBelow: 'Answer “unknown” below a certainty of',
    unknownHelp: 'Certainty is the confidence, or less for an image that is unlike those of validation. 50 % is a good start.',
    classes: count => `The ${count} classes`, about: 'About this file', licence: 'Licence of ONNX Runtime Web',
    private: 'Your images stay on this device: the page sends nothing and stores nothing.',
    model: 'Network', format: 'Weights', size: 'Images', pixels: (w, h) => `${w} × ${h} pixels`, agreement: 'Agreement',
    agrees: (share, count) => `${share} of ${count} validation images are classified as by PyTorch`,
    accuracy: 'Accuracy', right: share => `${share} of them rightly`, runtime: 'Runtime', speed: 'Last image',
    ms: (decode, network) => `${decode} ms to decode, ${network} ms for the network`, versions: 'Made with',
    threads: count => count === 1 ? '1 thread' : `${count} threads`,
    disagrees: 'In this browser the network computes other numbers than it should: do not rely on its answers.',
    empty: 'The file is empty', tooLarge: 'The file is larger than 1 GiB', cut: 'The file is cut off',
    tooManyPixels: 'The image has more than 120 million pixels',
    unknownFormat: 'The file is not an image, or is of a kind that a browser cannot read',
    undecodable: 'This browser cannot read images of this kind: save it as JPEG or PNG', damaged: 'The image is damaged',
    readback: 'This browser protects against fingerprinting by changing the colours of images that a page reads. Allow this page to read canvases, or use another browser.',
    unexpected: 'Something went wrong', noMemory: 'The network could not be started. If memory is short, close other tabs.',
    old: 'This browser is too old: it needs Chrome 105, Firefox 114, Safari 16.4 or newer.',
    noCamera: 'The camera cannot be used', notAllowed: 'The camera was not allowed. Allow it in the settings of the browser, and try again.',
  },
  zh: {
    title: '图像分类器',
    subtitle: (count, names) => `可区分 ${count} 个类别：${names}`,
    unpacking: '正在解压网络……', starting: '正在启动网络……',
    drop: '将图片或文件夹拖放到此处', touch: '选择图片或拍照', paste: '也可以从剪贴板粘贴图片',
    choose: '选择图片', chooseFolder: '选择文件夹', photograph: '拍照', live: '实时摄像头',
    look: '关注区域', stopLive: '停止摄像头', camera: '实时摄像头，取最近几帧的平均值',
    confident: share => `置信度 ${share}`, certain: share => `，可信度 ${share}`,
    unlike: '这张图片与验证集中的图片不相似，请勿依赖此结果。',
    unknown: '未知', nearest: (name, share) => `可信度 ${share}；最接近的类别是 ${name}`,
    progress: (done, total) => `${done} / ${total} 张图片`, finished: total => `${total} 张图片`,
    someBad: count => `，其中 ${count} 张无法读取`,
    stop: '停止', download: '下载 CSV', clear: '清空', more: count => `……另有 ${count} 张，全部在 CSV 中`,
    image: '图片', class: '类别', confidence: '置信度', certainty: '可信度', none: '其中没有图片。',
    options: '未知图片', unknownBelow: '可信度低于此值时回答“未知”',
    unknownHelp: '可信度即置信度；若图片与验证集中的图片不相似，则更低。建议从 50 % 开始。',
    classes: count => `全部 ${count} 个类别`, about: '关于此文件', licence: 'ONNX Runtime Web 的许可证',
    private: '图片不会离开本设备：本页面不发送也不保存任何内容。',
    model: '网络', format: '权重', size: '图像', pixels: (w, h) => `${w} × ${h} 像素`, agreement: '一致性',
    agrees: (share, count) => `${count} 张验证图片中有 ${share} 与 PyTorch 的分类相同`,
    accuracy: '准确率', right: share => `其中 ${share} 分类正确`, runtime: '运行环境', speed: '最近一张',
    ms: (decode, network) => `解码 ${decode} 毫秒，网络 ${network} 毫秒`, versions: '制作工具',
    threads: count => `${count} 个线程`,
    disagrees: '此浏览器中网络的计算结果与预期不符，请勿依赖其结果。',
    empty: '文件为空', tooLarge: '文件大于 1 GiB', cut: '文件不完整',
    tooManyPixels: '图片超过 1.2 亿像素',
    unknownFormat: '文件不是图片，或浏览器无法读取这种格式',
    undecodable: '此浏览器无法读取这种图片：请另存为 JPEG 或 PNG', damaged: '图片已损坏',
    readback: '此浏览器为防止指纹识别而改变了页面读取的图片颜色。请允许本页面读取画布，或换用其他浏览器。',
    unexpected: '出现错误', noMemory: '网络无法启动。如果内存不足，请关闭其他标签页。',
    old: '浏览器版本过旧：需要 Chrome 105、Firefox 114、Safari 16.4 或更新版本。',
    noCamera: '无法使用摄像头', notAllowed: '摄像头未获许可。请在浏览器设置中允许后重试。',
  },
}

const language = navigator.language.toLowerCase().startsWith('zh') ? 'zh' : 'en'
const texts = TEXTS[language]
const settings = JSON.parse(document.getElementById('settings').textContent)
const at = id => document.getElementById(id)
const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)}\u00a0%`  // which does not break


// ---- texts of the page ----------------------------------------------------------------------------------------------

document.documentElement.lang = language === 'zh' ? 'zh-Hans' : 'en'
document.title = texts.title
for (const element of document.querySelectorAll('[data-text]')) element.textContent = texts[element.dataset.text]
const firstNames = settings.classes.slice(0, 4).join(language === 'zh' ? '、' : ', ')
at('subtitle').textContent = texts.subtitle(settings.classes.length, firstNames + (settings.classes.length > 4 ? ' …' : ''))
at('classes-summary').textContent = texts.classes(settings.classes.length)
for (const name of settings.classes) at('classes').append(made('li', name))

function made(tag, text, className = '') {
  const element = document.createElement(tag)
  element.textContent = text
  element.className = className
  return element
}

function showFacts(facts) {
  at('facts').replaceChildren()
  for (const [name, value] of facts) at('facts').append(made('dt', name), made('dd', value))
}

function facts() {
  const [height, width] = settings.imgSize
  const found = [[texts.model, settings.model], [texts.format, settings.weights],
                 [texts.size, texts.pixels(width, height)],
                 [texts.agreement, texts.agrees(percent(settings.agreement, 1), settings.agreementImages)],
                 [texts.accuracy, texts.right(percent(settings.accuracy, 1))]]
  if (engine) found.push([texts.runtime, engine])
  if (speed) found.push([texts.speed, speed])
  found.push([texts.versions, settings.versions])
  return found
}

let engine = ''
let speed = ''
showFacts(facts())

let warning = ''  // of the start, which stays

function showProblem(text) {
  at('problem').textContent = `${warning} ${text}`.trim()
  at('problem').hidden = !at('problem').textContent
}


// ---- the worker, and the network that this file carries --------------------------------------------------------------

const answers = new Map()  // id -> what to do with the answer to it
let lastId = 0
const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS) : 1
const isSupported = 'DecompressionStream' in self && 'OffscreenCanvas' in self && 'createImageBitmap' in self
let worker

if (isSupported) {
  const code = new Blob([at('worker').textContent], {type: 'text/javascript'})
  worker = new Worker(URL.createObjectURL(code))
  worker.onmessage = ({data}) => receive(data)
  worker.onerror = event => fail(`${texts.noMemory} (${event.message ?? ''})`)
  handOver()
} else {
  fail(texts.old)
}

// The payloads stand behind this script, and go to the worker as the browser reads them.
function handOver() {
  const parts = [...document.querySelectorAll('script[data-payload]')]
  const isAll = document.readyState !== 'loading'
  if (!isAll) parts.pop()  // which may not be complete
  for (const part of parts.slice(0, 8)) {
    worker.postMessage({kind: 'part', name: part.dataset.payload, text: part.textContent})
    part.remove()
  }
  if (isAll && parts.length <= 8) worker.postMessage({kind: 'start', settings, threads})
  else setTimeout(handOver, 10)
}

function receive(message) {
  if (message.kind === 'progress') {
    at('unpacked').value = message.unpacked / settings.payloadSize
    if (message.unpacked >= settings.payloadSize) {
      at('stage').textContent = texts.starting
      at('unpacked').removeAttribute('value')
    }
  } else if (message.kind === 'ready') {
    engine = `ONNX Runtime Web ${settings.runtimeVersion}, ${message.backend === 'webgpu' ? 'WebGPU' : 'WebAssembly'}, `
             + texts.threads(message.threads)
    showFacts(facts())
    at('loading').hidden = true
    at('sources').hidden = false
    document.body.dataset.ready = message.backend
    if (!message.agrees) warning = texts.disagrees
    showProblem('')
  } else if (message.kind === 'failed') {
    fail(message.reason === 'readback' ? texts.readback : `${texts.noMemory} (${message.detail})`)
  } else {
    const settle = answers.get(message.id)
    answers.delete(message.id)
    settle(message)
  }
}

function fail(text) {
  at('loading').hidden = true
  showProblem(text)
  document.body.dataset.ready = 'failed'
}

// Of a File or a bitmap: {kind: 'result' or 'refused', …}.
function ask(source) {
  const id = ++lastId
  worker.postMessage({kind: 'classify', id, source}, source instanceof ImageBitmap ? [source] : [])
  return new Promise(resolve => answers.set(id, resolve))
}

// What test.py would say: a row of predictions.csv.
function rowOf(path, message) {
  if (message.kind === 'refused') {
    const text = texts[message.reason]
    const error = message.reason === 'unexpected' ? `${text} (${message.detail})` : text
    return {path, top: [], confidence: null, certainty: null, error}
  }
  const {probabilities, certainty} = message
  const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a])
  const top = order.slice(0, settings.top).map(index => ({class: settings.classes[index], share: probabilities[index]}))
  return {path, top, confidence: top[0].share, certainty, error: ''}
}

// A class may have this name.
const unknown = settings.classes.includes(texts.unknown) ? settings.unknown : texts.unknown
const isUnknown = row => row.certainty < Number(at('unknown-below').value)


// ---- one image ------------------------------------------------------------------------------------------------------

function showAnswer(row, caption) {
  at('result').hidden = false
  at('caption').textContent = caption
  at('bars').replaceChildren()
  at('unlike').hidden = true
  if (row.error) {
    at('answer').textContent = '–'
    at('sure').textContent = row.error
    return
  }
  const unlike = row.certainty < row.confidence - 0.005
  if (isUnknown(row)) {
    at('answer').textContent = unknown
    at('sure').textContent = texts.nearest(row.top[0].class, percent(row.certainty))
  } else {
    at('answer').textContent = row.top[0].class
    at('sure').textContent = texts.confident(percent(row.confidence, 1))
                             + (unlike ? texts.certain(percent(row.certainty, 1)) : '')
  }
  at('unlike').hidden = !unlike
  for (const {class: name, share} of row.top) {
    const item = document.createElement('li')
    const track = made('div', '', 'track')
    const bar = document.createElement('i')
    bar.style.width = `${100 * share}%`
    track.append(bar)
    track.setAttribute('aria-hidden', 'true')
    item.append(made('span', name), made('span', percent(share, 1), 'share'), track)
    at('bars').append(item)
  }
}


// ---- where it looked ------------------------------------------------------------------------------------------------

let map = null        // of the answer in view: {width, height, data}, where the network looked
let isMapped = false  // whether the map is shown

function showMap(found) {
  map = found ?? null
  at('look').hidden = !map
  at('map').hidden = !map || !isMapped
  if (!at('map').hidden) drawMap()
}

// Darkens the picture in view: the more, the less of the network's attention a place has.
function drawMap() {
  const [width, height] = stream ? [at('video').videoWidth, at('video').videoHeight]
                                 : [at('picture').naturalWidth, at('picture').naturalHeight]
  const scale = MAP_SIDE / Math.max(width, height, 1)
  at('map').width = Math.max(1, Math.round(scale * width))
  at('map').height = Math.max(1, Math.round(scale * height))
  const context = at('map').getContext('2d')
  const box = seenBox(at('map').width, at('map').height)
  context.fillStyle = `rgb(0 0 0 / ${DARKEST / 255})`
  context.fillRect(0, 0, at('map').width, at('map').height)
  context.clearRect(...box)
  context.imageSmoothingQuality = 'high'
  context.drawImage(shadeOf(map), ...box)
}

function shadeOf({width, height, data}) {
  const shade = new OffscreenCanvas(width, height)
  const pixels = new ImageData(width, height)
  const most = Math.max(...data)
  for (let i = 0; i < data.length; i++) pixels.data[4 * i + 3] = DARKEST * (1 - data[i] / most)
  shade.getContext('2d').putImageData(pixels, 0, 0)
  return shade
}

function switchMap() {
  isMapped = !isMapped
  at('look').setAttribute('aria-pressed', isMapped)
  showMap(map)
}

// [left, top, width, height] of what the network sees of a picture: all of it or, where training had a CROP, its middle.
function seenBox(width, height) {
  if (settings.crop === null) return [0, 0, width, height]
  const [rows, columns] = settings.imgSize
  const ratio = Math.min(height / Math.floor(rows / settings.crop), width / Math.floor(columns / settings.crop))
  return [(width - ratio * columns) / 2, (height - ratio * rows) / 2, ratio * columns, ratio * rows]
}


// ---- one of the images ----------------------------------------------------------------------------------------------

let shownUrl = ''
let shown = null  // the entry in view

function show(entry) {
  stopCamera()
  shown = entry
  URL.revokeObjectURL(shownUrl)
  shownUrl = URL.createObjectURL(entry.file)
  at('picture').src = shownUrl
  at('picture').alt = entry.row.path
  at('picture').hidden = Boolean(entry.row.error)
  showAnswer(entry.row, entry.row.path)
  showMap(entry.map)
}


// ---- many images ----------------------------------------------------------------------------------------------------

let entries = []   // {file, row, map} of each image that is done
let waiting = []   // {file, path}
let isWorking = false
let unreadable = 0
let round = 0      // that the user began: an answer to an earlier one is not wanted any more

function add(files) {
  showProblem(files.length ? '' : texts.none)
  if (!files.length) return
  stopCamera()
  files[0].isShown = true  // the first of each choice
  waiting = waiting.concat(files)
  showProgress()
  work()
}

async function work() {
  if (isWorking) return
  isWorking = true
  while (waiting.length) {
    const {file, path, isShown} = waiting[0]
    const asked = round
    const message = await ask(file)
    if (asked !== round) continue
    waiting.shift()
    const entry = {file, row: rowOf(path, message), map: message.map}
    entries.push(entry)
    if (entry.row.error) unreadable += 1
    else speed = texts.ms(Math.round(message.decodeMs), Math.round(message.networkMs))
    addTableRow(entry)
    if (isShown) show(entry)
    showProgress()
  }
  isWorking = false
  showProgress()
  showFacts(facts())
}

function showProgress() {
  const total = entries.length + waiting.length
  const isDone = !waiting.length
  at('many').hidden = total === 0
  at('count').setAttribute('aria-live', isDone ? 'polite' : 'off')
  at('count').textContent = (isDone ? texts.finished(total) : texts.progress(entries.length, total))
                            + (unreadable ? texts.someBad(unreadable) : '')
  at('done').hidden = isDone
  at('done').value = entries.length / Math.max(total, 1)
  at('stop').hidden = isDone
  at('clear').hidden = !isDone
  at('more').hidden = entries.length <= MOST_ROWS
  at('more').textContent = texts.more(entries.length - MOST_ROWS)
}

function addTableRow(entry) {
  if (at('rows').rows.length >= MOST_ROWS) return
  const line = at('rows').insertRow()
  const name = made('button', entry.row.path)
  name.type = 'button'
  name.addEventListener('click', () => {
    show(entry)
    at('result').scrollIntoView({block: 'nearest'})
  })
  line.insertCell().append(name)
  fillTableRow(line, entry.row)
}

function fillTableRow(line, row) {
  while (line.cells.length > 1) line.deleteCell(1)
  if (row.error) {
    const cell = line.insertCell()
    cell.colSpan = 3
    cell.className = 'error'
    cell.textContent = row.error
    return
  }
  line.insertCell().textContent = isUnknown(row) ? unknown : row.top[0].class
  line.insertCell().textContent = percent(row.confidence, 1)
  line.insertCell().textContent = percent(row.certainty, 1)
}

function stopWaiting() {
  waiting = []
  round += 1
  showProgress()
}

function clearAll() {
  entries = []
  unreadable = 0
  shown = null
  at('rows').replaceChildren()
  at('result').hidden = true
  stopWaiting()
}

function changeThreshold() {
  at('unknown-value').textContent = percent(Number(at('unknown-below').value))
  entries.slice(0, MOST_ROWS).forEach((entry, index) => fillTableRow(at('rows').rows[index], entry.row))
  if (shown) showAnswer(shown.row, shown.row.path)
}


// ---- CSV, as test.py writes predictions.csv ---------------------------------------------------------------------------

const COLUMNS = ['path', 'class', 'confidence', 'certainty', 'top5', 'error']

function asCsv() {
  const lines = [COLUMNS.map(quoted).join(',')]
  for (const {row} of entries) {
    const name = row.error ? '' : isUnknown(row) ? settings.unknown : row.top[0].class
    const top = row.top.map(({class: name, share}) => `${name} ${share.toFixed(4)}`).join('; ')
    const number = value => value === null ? '""' : String(Number(value.toFixed(6)))
    lines.push([quoted(row.path), quoted(name), number(row.confidence), number(row.certainty), quoted(top),
                quoted(row.error)].join(','))
  }
  return `\ufeff${lines.join('\r\n')}\r\n`  // Excel needs the byte-order mark
}

// What a spreadsheet would take for a formula, and run, gets an apostrophe in front; the invisible becomes an escape.
function quoted(text) {
  const safe = text.replace(/((?:^|;)[\s"]*)(?=[=+\-@＝＋－＠])/g, "$1'")
                   .replace(/[\p{C}\p{Zl}\p{Zp}]/gu, escaped)
  return `"${safe.replaceAll('"', '""')}"`
}

function escaped(character) {
  const code = character.codePointAt(0)
  if (code < 256) return `\\x${code.toString(16).padStart(2, '0')}`
  if (code < 65536) return `\\u${code.toString(16).padStart(4, '0')}`
  return `\\U${code.toString(16).padStart(8, '0')}`
}

function download() {
  const link = document.createElement('a')
  link.href = URL.createObjectURL(new Blob([asCsv()], {type: 'text/csv'}))
  link.download = 'predictions.csv'
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 60000)
}


// ---- where images come from -----------------------------------------------------------------------------------------

const byPath = (a, b) => a.path < b.path ? -1 : 1
const isHidden = path => path.split('/').some(part => part.startsWith('.') || part === '__MACOSX')
const looksLikeImage = ({path}) => IMAGE_NAME.test(path) && !isHidden(path)

function addChosen(input) {
  const files = [...input.files].map(file => ({file, path: file.name}))
  input.value = ''
  add(files)
}

function addFolder(input) {
  const files = [...input.files].map(file => {
    const below = file.webkitRelativePath.split('/').slice(1).join('/')
    return {file, path: below || file.name}  // phones offer files in place of folders
  })
  input.value = ''
  add(files.filter(looksLikeImage).sort(byPath))
}

async function addDropped(transfer) {
  const dropped = [...transfer.items].filter(item => item.kind === 'file').map(droppedItem)  // before they are forgotten
  let found = []
  for (const item of dropped) {
    const {file, folder} = await item
    if (file) found.push({file, path: file.name})
    else if (folder) found = found.concat((await filesBelow(folder, dropped.length === 1 ? '' : `${folder.name}/`)).sort(byPath))
  }
  add(found)
}

// Chrome reads no entries on a page that is a local file, and other browsers have no handles.
async function droppedItem(item) {
  const file = item.getAsFile()
  const entry = item.webkitGetAsEntry?.()
  if (!entry?.isDirectory) return {file}
  const handle = item.getAsFileSystemHandle?.().catch(() => null)
  return {folder: await handle ?? entry}
}

// The images below a FileSystemDirectoryHandle or a FileSystemDirectoryEntry.
async function filesBelow(folder, path) {
  let found = []
  for await (const item of itemsOf(folder)) {
    const below = {path: path + item.name}
    const isFolder = item.isDirectory ?? item.kind === 'directory'
    if (isFolder && !isHidden(below.path)) found = found.concat(await filesBelow(item, `${below.path}/`))
    else if (!isFolder && looksLikeImage(below)) found.push({...below, file: await fileOf(item)})
  }
  return found
}

async function* itemsOf(folder) {
  if (folder.values) {
    yield* folder.values()
    return
  }
  const reader = folder.createReader()
  for (;;) {
    const items = await new Promise((resolve, reject) => reader.readEntries(resolve, reject))  // at most 100 at a time
    if (!items.length) return
    yield* items
  }
}

const fileOf = item => item.getFile ? item.getFile() : new Promise((resolve, reject) => item.file(resolve, reject))

// The focus would be lost with a button that is hidden now.
const focusOn = id => at(id).focus({preventScroll: true})

const isReady = () => !at('sources').hidden

for (const [button, input] of [['choose', 'files'], ['choose-folder', 'folder'], ['photograph', 'shot']]) {
  at(button).addEventListener('click', () => at(input).click())
}
at('files').addEventListener('change', () => addChosen(at('files')))
at('shot').addEventListener('change', () => addChosen(at('shot')))
at('folder').addEventListener('change', () => addFolder(at('folder')))
addEventListener('paste', event => {
  const files = [...event.clipboardData.files].map(file => ({file, path: file.name}))
  if (isReady() && files.length) add(files)
})
addEventListener('dragover', event => {
  event.preventDefault()
  at('sources').classList.add('over')
})
addEventListener('dragleave', event => {
  if (!event.relatedTarget) at('sources').classList.remove('over')
})
addEventListener('drop', event => {
  event.preventDefault()
  at('sources').classList.remove('over')
  if (isReady()) addDropped(event.dataTransfer).catch(error => showProblem(`${texts.unexpected} (${error.message})`))
})
at('look').addEventListener('click', switchMap)
at('picture').addEventListener('load', () => showMap(map))
at('stop').addEventListener('click', () => {
  stopWaiting()
  focusOn(entries.length ? 'clear' : 'choose')
})
at('clear').addEventListener('click', () => {
  clearAll()
  focusOn('choose')
})
at('download').addEventListener('click', download)
at('unknown-below').value = settings.unknownBelow
at('unknown-below').addEventListener('input', changeThreshold)
changeThreshold()


// ---- the camera -----------------------------------------------------------------------------------------------------

let stream = null
let cameraTurn = 0  // a stream that was asked for in an earlier one is ended

const hasTouch = matchMedia('(pointer: coarse)').matches
if (hasTouch) at('drop-here').textContent = texts.touch
at('paste').hidden = hasTouch
at('photograph').hidden = !hasTouch
at('live').hidden = !navigator.mediaDevices?.getUserMedia
at('live').addEventListener('click', startCamera)
at('stop-live').addEventListener('click', () => {
  stopCamera()
  focusOn('live')
})
document.addEventListener('visibilitychange', () => {
  if (document.hidden) stopCamera()
})

async function startCamera() {
  stopCamera()
  stopWaiting()
  showProblem('')
  const turn = cameraTurn
  try {
    const opened = await navigator.mediaDevices.getUserMedia({video: {facingMode: 'environment'}})
    if (turn !== cameraTurn) {
      endStream(opened)
      return
    }
    stream = opened
    at('video').srcObject = stream
    await at('video').play()
  } catch (error) {
    if (turn !== cameraTurn) return
    stopCamera()
    showProblem(error.name === 'NotAllowedError' ? texts.notAllowed : `${texts.noCamera} (${error.message})`)
    return
  }
  if (turn !== cameraTurn) return
  shown = null
  showMap(null)
  at('picture').hidden = true
  at('video').hidden = false
  at('stop-live').hidden = false
  at('said').setAttribute('aria-live', 'off')  // a screen reader cannot follow several answers a second
  showAnswer({error: '…'}, texts.camera)
  await follow(stream)
}

// The answer is that of the mean over the last frames, so that it does not flicker.
async function follow(current) {
  const recent = []
  while (stream === current) {
    const message = await ask(await createImageBitmap(at('video')))
    if (stream !== current) return
    if (message.kind === 'refused') {
      stopCamera()
      showProblem(`${texts.unexpected} (${message.detail})`)
      return
    }
    recent.push(message)
    if (recent.length > LIVE_FRAMES) recent.shift()
    const mean = values => values.reduce((a, b) => a + b, 0) / values.length
    const probabilities = message.probabilities.map((_, k) => mean(recent.map(frame => frame.probabilities[k])))
    const certainty = Math.min(mean(recent.map(frame => frame.certainty)), Math.max(...probabilities))
    showAnswer(rowOf('', {kind: 'result', probabilities, certainty}), texts.camera)
    showMap(message.map)
  }
}

function endStream(opened) {
  for (const track of opened.getTracks()) track.stop()
}

function stopCamera() {
  cameraTurn += 1
  if (!stream) return
  endStream(stream)
  stream = null
  at('said').setAttribute('aria-live', 'polite')
  at('video').srcObject = null
  at('video').hidden = true
  at('stop-live').hidden = true
  at('result').hidden = true
}
