// The review mode of report.html: images one at a time or many at once, a class for each, a table to download.
// What it shows is in #review-data (JSON, see page.py) and in the blocks of pictures. Every name is set as text.
(() => {
'use strict'

const byId = id => document.getElementById(`review-${id}`)
const data = JSON.parse(byId('data').textContent)
const {items, classes} = data
const app = byId('app')
const LEAVE_OUT = ''  // the class of an image that is to be left out, as in the table


// ---- elements, whose texts may be anything

function element(tag, text = '', className = '') {
  const made = document.createElement(tag)
  made.textContent = text
  made.className = className
  return made
}

function button(text, key, className, onClick) {
  const made = element('button', '', className)
  made.type = 'button'
  if (key) made.append(element('kbd', key))
  made.append(text)
  made.addEventListener('click', onClick)
  return made
}

function image(number, alt) {
  const made = document.createElement('img')
  made.src = picture(number)
  made.alt = alt
  made.draggable = false
  return made
}


// ---- pictures: blocks of lines, which are taken apart when one of them is needed

const blocks = [...document.querySelectorAll('.review-block')]
const opened = new Map()  // {number of a block: its lines}

function picture(number) {
  const block = Math.floor(number / data.block)
  if (!opened.has(block)) opened.set(block, blocks[block].textContent.split('\n'))
  return `data:image/jpeg;base64,${opened.get(block)[number % data.block]}`
}


// ---- decisions: {file: {label, when}}, each in the browser's store as soon as it is made

const decisions = new Map()
const prefix = `review:${data.id}:`
let stored = true

function loadDecisions() {
  try {
    for (let number = 0; number < localStorage.length; number++) {
      const key = localStorage.key(number)
      if (key.startsWith(prefix)) receive(key, localStorage.getItem(key))
    }
  } catch { warnOfStore() }
  const byTime = [...decisions].sort(([, one], [, other]) => one.when < other.when ? -1 : one.when > other.when ? 1 : 0)
  decisions.clear()  // the store has no order, and made-up classes get their keys by it
  for (const [file, decision] of byTime) decisions.set(file, decision)
}

/** Take over what the browser's store has under a key; null if it is gone. */
function receive(key, text) {
  const file = key.slice(prefix.length)
  if (text === null) decisions.delete(file)
  else decisions.set(file, JSON.parse(text))
}

function setDecision(file, decision) {
  if (decision) decisions.set(file, decision)
  else decisions.delete(file)
  try {
    if (decision) localStorage.setItem(prefix + file, JSON.stringify(decision))
    else localStorage.removeItem(prefix + file)
  } catch { warnOfStore() }
}

/** Some browsers keep nothing for files, or have no room left. */
function warnOfStore() {
  stored = false
  byId('storage').textContent = 'This browser does not keep decisions: download the table before you close the page.'
}

/** Classes that a person made up, in the order in which they came. */
const added = () => [...new Set([...decisions.values()].map(decision => decision.label))]
  .filter(label => label !== LEAVE_OUT && !data.classes.includes(label))

/** The classes that have a key for an item. */
const choicesOf = item => [...new Set([...item.choices.map(className), ...added()])].slice(0, 9)

const isDecided = item => item.files.every(file => decisions.has(file))
const labelOf = (item, place) => item.labels[place] < 0 ? null : classes[item.labels[place]]
const className = index => classes[index]  // undefined for -1

/** What was decided for an item: a class, LEAVE_OUT, null where its images keep labels of their own, or undefined. */
function answerOf(item) {
  if (!isDecided(item)) return undefined
  const labels = new Set(item.files.map(file => decisions.get(file).label))
  return labels.size === 1 ? [...labels][0] : null
}


// ---- deciding and undoing

const undoable = []  // [{changes: [[file, decision before]], item}], the last one at the end

/** Decide on items. `labelFor(item, place)` is the class of an image, LEAVE_OUT, or null to decide nothing. */
function decide(numbers, labelFor, said) {
  const when = new Date().toISOString()
  const changes = []
  for (const number of numbers) {
    const item = items[number]
    item.files.forEach((file, place) => {
      const label = labelFor(item, place)
      if (label === null) return
      changes.push([file, decisions.get(file)])
      setDecision(file, {label, was: labelOf(item, place) ?? '', when})
    })
  }
  if (!changes.length) return
  undoable.push({changes, item: numbers[0]})
  const label = numbers.length > 1 ? `${numbers.length} images: ${said}` : said
  afterChange()
  if (mode === 'single') showNext()
  render()
  say(stored ? `${label} · ${leftText()}` : byId('storage').textContent, !stored)
}

function undo() {
  const last = undoable.pop()
  if (!last) return
  for (const [file, before] of last.changes.reverse()) setDecision(file, before)
  afterChange()
  if (mode === 'single') current = last.item
  render()
  say(`undone · ${leftText()}`)
}

/** What an earlier visit decided can be undone, too, the last decision first. */
function rebuildHistory() {
  const decided = []
  items.forEach((item, number) => {
    if (isDecided(item)) decided.push([decisions.get(item.files[0]).when, number])
  })
  decided.sort((one, other) => one[0] < other[0] ? -1 : one[0] > other[0] ? 1 : 0)
  for (const [, number] of decided)
    undoable.push({changes: items[number].files.map(file => [file, undefined]), item: number})
}

const keepLabel = (item, place) => labelOf(item, place)
const suggestion = item => item.perhaps < 0 ? null : className(item.perhaps)


// ---- filters

const filters = {label: '', perhaps: '', kind: '', state: 'todo'}
let matching = []  // numbers of the items of these classes, decided or not
let listed = []    // those of them that the wall shows

function matches(item) {
  return (filters.label === '' || item.labels.includes(Number(filters.label)))
    && (filters.perhaps === '' || item.perhaps === Number(filters.perhaps))
    && (filters.kind === '' || item.kind === filters.kind)
}

function afterChange() {
  listed = matching.filter(number =>
    filters.state === 'all' || isDecided(items[number]) === (filters.state === 'decided'))
  selected.clear()
  focused = Math.max(0, Math.min(focused, listed.length - 1))
  anchor = focused
}

function afterFilter() {
  matching = [...items.keys()].filter(number => matches(items[number]))
  afterChange()
  if (!matching.includes(current)) {
    current = matching[0] ?? -1
    showNext(true)
  }
  focused = anchor = 0
  byId('wall').scrollTop = 0
  render()
}

function fillFilter(name, any, options) {
  const select = byId(name)
  select.append(new Option(any, ''))
  for (const [value, text] of options) select.append(new Option(text, value))
  select.hidden = options.length < 2
  select.addEventListener('change', () => {
    filters[name] = select.value
    afterFilter()
  })
}

function fillFilters() {
  const used = numbers => [...new Set(numbers)].filter(index => index >= 0).sort((one, other) => one - other)
    .map(index => [String(index), className(index)])
  fillFilter('label', 'any label', used(items.flatMap(item => item.labels)))
  fillFilter('perhaps', 'any suggestion', used(items.map(item => item.perhaps)))
  fillFilter('kind', 'any reason', Object.entries(data.kinds).filter(([kind]) => items.some(item => item.kind === kind)))
  byId('state').addEventListener('change', event => {
    filters.state = event.target.value
    afterFilter()
  })
  byId('filters').addEventListener('submit', event => event.preventDefault())
}

const left = () => matching.filter(number => !isDecided(items[number])).length
const leftText = () => `${left()} of ${matching.length} left`


// ---- what is on the screen

let mode = 'single'
let current = 0   // the item that is shown alone
let isOpen = false

function render() {
  if (!isOpen) return
  const done = matching.length - left()
  byId('left').textContent = leftText()
  byId('progress').max = matching.length || 1
  byId('progress').value = done
  byId('undo').disabled = !undoable.length
  byId('mode').textContent = mode === 'single' ? 'Wall' : 'Single'
  const count = rows().length
  byId('download').replaceChildren('↓ ', element('span', `${data.table} `), `(${count})`)
  byId('download').setAttribute('aria-label', `Download ${data.table} with ${count} rows`)
  byId('download').disabled = !count
  byId('state').hidden = mode === 'single'
  byId('single').hidden = mode !== 'single'
  byId('wall').hidden = mode !== 'wall'
  if (mode === 'single') renderSingle()
  else renderWall(true)
}

let sayTimer = 0

function say(text, stays = false) {
  const status = byId('status')
  status.textContent = text
  status.classList.add('fresh')
  clearTimeout(sayTimer)
  if (!stays) sayTimer = setTimeout(() => status.classList.remove('fresh'), 600)
}


// ---- one at a time

/** Show the next item that is not decided, beginning with the current one if `orThis`; behind the last the first. */
function showNext(orThis = false) {
  const start = matching.indexOf(current) + (orThis ? 0 : 1)
  const order = [...matching.slice(start), ...matching.slice(0, start)]
  current = order.find(number => !isDecided(items[number])) ?? current
}

function turn(step) {
  const place = matching.indexOf(current) + step
  if (place < 0 || place >= matching.length) return
  current = matching[place]
  render()
}

function renderSingle() {
  const item = items[current]
  const pictures = byId('pictures')
  pictures.replaceChildren()
  byId('why').replaceChildren()
  if (!item || !matching.length) {
    byId('why').textContent = 'No image is of this kind.'
    renderTypical(byId('left-side'), -1)
    renderTypical(byId('right-side'), -1)
    byId('choices').replaceChildren()
    return
  }
  item.files.forEach((file, place) => {
    const figure = element('figure')
    figure.append(image(item.picture + place, file))
    if (item.files.length > 1) figure.append(element('figcaption', `label: ${labelOf(item, place)}`))
    pictures.append(figure)
  })
  renderWhy(item)
  if (item.labels[0] >= 0) {
    renderTypical(byId('left-side'), item.labels[0], 'the label')
    renderTypical(byId('right-side'), item.perhaps, 'perhaps')
  } else {
    renderTypical(byId('left-side'), item.choices[0], 'most probable')
    renderTypical(byId('right-side'), item.choices[1], 'next')
  }
  const place = matching.indexOf(current)
  byId('previous').disabled = place <= 0
  byId('next').disabled = place >= matching.length - 1
  renderChoices(item)
}

function renderWhy(item) {
  const why = byId('why')
  const [label, perhaps] = [className(item.labels[0]), className(item.perhaps)]
  const sure = item.sure === null ? '' : ` (${Math.round(100 * item.sure)} %)`
  const reasons = {
    twins: 'One photograph, several classes: which one is right?',
    suspect: `Labelled ${label}, looks more like ${perhaps}`,
    mistake: `Labelled ${label}, classified as ${perhaps}${sure}`,
    unsure: perhaps ? `Most probably ${perhaps}${sure}` : ''}
  why.append(element('span', (left() ? '' : 'All decided. ') + reasons[item.kind]), element('div', item.files.join(' · '), 'soft'))
}

function renderTypical(side, index, what) {
  side.replaceChildren()
  const pictures = data.typical[index] ?? []
  if (!pictures.length) return
  const heading = element('h3', className(index))
  heading.append(element('small', ` ${what}`))
  side.append(heading, ...pictures.map(number => image(number, `typical of ${className(index)}`)))
}

function choose(label) {
  if (current < 0) return
  decide([current], () => label, label === LEAVE_OUT ? 'left out' : label)
}

function keep() {
  if (!(items[current]?.labels[0] >= 0)) return
  decide([current], keepLabel, 'kept')
}

function renderChoices(item) {
  const answer = answerOf(item)
  const choices = choicesOf(item)
  const made = choices.map((name, place) => {
    const isLabel = item.files.length === 1 && name === labelOf(item, 0)
    const kinds = [isLabel ? 'keep' : '', name === suggestion(item) ? 'perhaps' : '', place < 2 ? 'main' : '',
      place === 0 ? 'first' : '', place > 3 ? 'more' : '', answer === name ? 'chosen' : '']
    const made = button(isLabel ? `Keep ${name}` : name, String(place + 1), kinds.join(' '), () => choose(name))
    made.setAttribute('aria-pressed', answer === name)
    return made
  })
  if (item.files.length > 1) made.push(button('Keep all as they are', 'K', answer === null ? 'chosen' : '', keep))
  const isOther = answer && !choices.includes(answer)
  made.push(button(isOther ? answer : 'Other class…', '/', isOther ? 'chosen' : '', openPicker))
  made.push(button('Leave out', '0', answer === LEAVE_OUT ? 'out chosen' : 'out', () => choose(LEAVE_OUT)))
  byId('choices').replaceChildren(...made)
}


// ---- many at once: of thousands of cells there are as many as the screen has room for

const GAP = 8          // pixels between cells
const CAPTION = 40     // pixels, as in the style sheet
const selected = new Set()  // numbers of items
const shown = new Map()     // {place in the list: cell}
const spare = []            // cells that are not in use
let focused = 0             // place in the list
let anchor = 0              // where a selection with Shift begins
let columns = 1
let side = 0                // of a cell, in pixels

function renderWall(anew = false) {
  const wall = byId('wall')
  const grid = byId('grid')
  const width = grid.clientWidth
  if (!width) return
  const least = width < 600 ? 100 : 150
  columns = Math.max(2, Math.floor((width + GAP) / (least + GAP)))
  side = (width + GAP) / columns - GAP
  const height = side + CAPTION + GAP
  grid.style.height = `${Math.ceil(listed.length / columns) * height}px`
  const first = Math.max(0, Math.floor(wall.scrollTop / height) - 2) * columns
  const last = Math.min(listed.length, (Math.ceil((wall.scrollTop + wall.clientHeight) / height) + 2) * columns)
  for (const [place, cell] of shown) {
    if (place >= first && place < last) continue
    shown.delete(place)
    spare.push(cell)
    cell.remove()
  }
  for (let place = first; place < last; place++) {
    let cell = shown.get(place)
    if (cell && !anew) continue
    if (!cell) {
      cell = spare.pop() ?? newCell()
      shown.set(place, cell)
      grid.append(cell)
    }
    fillCell(cell, place)
    cell.style.width = `${side}px`
    cell.style.height = `${side + CAPTION}px`
    const row = Math.floor(place / columns)
    cell.style.transform = `translate(${(place % columns) * (side + GAP)}px, ${row * height}px)`
  }
  grid.setAttribute('aria-activedescendant', shown.get(focused)?.id ?? '')
  if (anew) renderActions()
}

function newCell() {
  const cell = element('div', '', 'cell')
  const picture = document.createElement('img')
  picture.decoding = 'async'
  cell.setAttribute('role', 'option')
  cell.append(picture, element('div'), element('div', '', 'soft'))
  cell.item = -1
  return cell
}

function fillCell(cell, place) {
  const number = listed[place]
  const item = items[number]
  const [shownImage, first, second] = cell.children
  if (cell.item !== number) {
    cell.item = number
    shownImage.src = picture(item.picture)
    shownImage.alt = item.files[0]
  }
  cell.place = place
  cell.id = `review-cell-${place}`
  const labels = [...new Set(item.labels)].filter(index => index >= 0).map(className).join(' / ')
  const answer = answerOf(item)
  const answered = answer === LEAVE_OUT ? 'left out' : answer === null ? 'kept' : answer
  first.textContent = labels || suggestion(item) || ''
  second.textContent = answer === undefined ? (labels && suggestion(item) ? `${suggestion(item)}?` : '') : `→ ${answered}`
  cell.title = item.files.join('\n')
  cell.setAttribute('aria-selected', selected.has(number))
  cell.setAttribute('aria-setsize', listed.length)
  cell.setAttribute('aria-posinset', place + 1)
  cell.classList.toggle('decided', answer !== undefined)
  cell.classList.toggle('current', place === focused)
}

function renderActions() {
  const count = selected.size
  const made = [element('span', `${count} selected`, 'count')]
  wallActions.forEach((action, place) => {
    const kinds = ['main', action.kind, place === 0 ? 'first' : '', wallActions.length === 1 ? 'only' : '']
    const run = () => decide(chosen(), action.choose, action.said)
    made.push(button(action.text, String(place + 1), kinds.join(' '), run))
  })
  made.push(button('Other class…', '/', '', openPicker), button('Leave out', '0', 'out', leaveOutChosen))
  for (const action of made.slice(1)) action.disabled = !count
  made.push(count ? button('None', '', '', selectNone) : button('Select all', '', '', selectAll))
  byId('choices').replaceChildren(...made)
}

/** What the keys 1 and 2 do with what is selected; images without a label have none to keep. */
const wallActions = [
  {text: 'Keep labels', kind: 'keep', choose: keepLabel, said: 'kept'},
  {text: 'As suggested', kind: 'perhaps', choose: suggestion, said: 'as suggested'}]
if (items.every(item => item.labels[0] < 0)) wallActions.shift()
if (items.every(item => item.perhaps < 0)) wallActions.pop()

const chosen = () => listed.filter(number => selected.has(number))
const leaveOutChosen = () => decide(chosen(), () => LEAVE_OUT, 'left out')

function selectAll() {
  for (const number of listed) selected.add(number)
  renderWall(true)
}

function selectNone() {
  selected.clear()
  renderWall(true)
}

function selectRange(from, to) {
  for (let place = Math.min(from, to); place <= Math.max(from, to); place++) selected.add(listed[place])
}

function toggle(place) {
  const number = listed[place]
  if (!selected.delete(number)) selected.add(number)
  anchor = place
}

function moveFocus(step, extend) {
  const place = Math.max(0, Math.min(listed.length - 1, focused + step))
  if (extend) selectRange(anchor, place)
  else anchor = place
  focused = place
  const wall = byId('wall')
  const height = side + CAPTION + GAP
  const top = Math.floor(place / columns) * height
  if (top < wall.scrollTop) wall.scrollTop = top
  else if (top + height > wall.scrollTop + wall.clientHeight - GAP) wall.scrollTop = top + height - wall.clientHeight + 2 * GAP
  renderWall(true)
}

function switchMode() {
  if (mode === 'wall') {
    current = listed[focused] ?? current
    mode = 'single'
    render()
    return
  }
  mode = 'wall'
  focused = Math.max(0, listed.indexOf(current))
  render()
  moveFocus(0, false)
  byId('grid').focus({preventScroll: true})
}


// ---- another class

const SHOWN_CLASSES = 60

function openPicker() {
  if (mode === 'wall' ? !selected.size : !items[current]) return
  byId('search').value = ''
  fillPicker()
  byId('picker').showModal()
  byId('search').focus()
}

/** What cannot be the name of a folder, which each class gets. */
const isNoName = name => /[\/\\\p{Cc}]|^\.|^[A-Za-z]:/u.test(name)

function fillPicker() {
  const typed = byId('search').value.trim().normalize('NFC')
  const wanted = typed.toLocaleLowerCase()
  const all = [...new Set([...data.all, ...added()])]
  const found = all.filter(name => name.toLocaleLowerCase().includes(wanted))
  const rank = name => [name === typed, name.toLocaleLowerCase() === wanted, name.toLocaleLowerCase().startsWith(wanted), true]
    .indexOf(true)
  found.sort((one, other) => rank(one) - rank(other))
  const lines = found.slice(0, SHOWN_CLASSES).map(name => pickerLine(name, name))
  if (typed && !all.includes(typed) && !isNoName(typed)) lines.push(pickerLine(`New class: ${typed}`, typed))
  if (found.length > SHOWN_CLASSES) lines.push(element('li', `and ${found.length - SHOWN_CLASSES} more`, 'soft'))
  byId('classes').replaceChildren(...lines)
}

function pickerLine(text, name) {
  const line = element('li')
  line.append(button(text, '', '', () => pick(name)))
  return line
}

function pick(name) {
  byId('picker').close()
  if (mode === 'wall') decide(chosen(), () => name, name)
  else choose(name)
}


// ---- the table

const isTime = text => /^\d{4}-\d\d-\d\dT[\d:.]+Z$/.test(text)

/** The rows to download: what earlier tables said, and what was decided here; of two the one that is later for sure. */
function rows() {
  const found = new Map()
  for (const row of data.earlier) found.set(row.file, row)
  for (const [file, decision] of decisions) {
    const before = found.get(file)
    if (before && !(isTime(before.when) && before.when < decision.when)) continue  // someone may have edited the table
    found.set(file, {...before, file, label: decision.label, was: before?.was || decision.was, when: decision.when})
  }
  return [...found.values()]
}

function table() {
  const columns = data.labels ? ['file', 'class', 'group'] : ['file', 'class', 'was', 'when']
  const quoted = text => `"${(text ?? '').replaceAll('"', '""')}"`
  const lines = rows().map(row => [row.file, row.label, ...(data.labels ? [row.group] : [row.was, row.when])])
  return [columns, ...lines].map(cells => cells.map(quoted).join(',') + '\r\n').join('')
}

function download() {
  const link = document.createElement('a')
  const url = URL.createObjectURL(new Blob(['\ufeff', table()], {type: 'text/csv'}))
  link.href = url
  link.download = data.table
  link.click()
  setTimeout(() => URL.revokeObjectURL(url), 60000)
  say(data.then, true)
}


// ---- opening, closing, keys, touch

function open() {
  isOpen = true
  app.hidden = false
  document.body.style.overflow = 'hidden'
  for (const other of document.body.children) if (other !== app) other.inert = true
  render()
  app.focus()
}

function close() {
  isOpen = false
  app.hidden = true
  document.body.style.overflow = ''
  for (const other of document.body.children) other.inert = false
  byId('start').focus({preventScroll: true})
}

function followAddress() {  // so that the browser's way back leads out of the review
  const wanted = location.hash === '#reviewing'
  if (wanted && !isOpen) open()
  if (!wanted && isOpen) close()
}

function leave() {
  location.hash = '#review'
}

const letters = {
  u: undo, w: switchMode, d: download, k: keep, '/': openPicker,
  '?': () => byId('keys').showModal(), Delete: () => act(0), Escape: leave}

/** What a digit stands for: 0 leaves out; one at a time the others are the choices, on the wall see the buttons. */
function act(digit) {
  if (mode === 'single') {
    const item = items[current]
    if (digit === 0) choose(LEAVE_OUT)
    else if (item && choicesOf(item)[digit - 1]) choose(choicesOf(item)[digit - 1])
    return
  }
  const action = wallActions[digit - 1]
  if (digit === 0) leaveOutChosen()
  else if (action) decide(chosen(), action.choose, action.said)
}

function onKey(event) {
  if (!isOpen || document.querySelector('#review-app dialog[open]')) return
  const withControl = event.ctrlKey || event.metaKey
  if (withControl && event.key.toLowerCase() === 'z') return done(event, undo)
  if (withControl && event.key.toLowerCase() === 'a' && mode === 'wall') return done(event, selectAll)
  if (withControl || event.altKey) return
  // Digits by their place, since French keyboards need Shift for them; but on German ones Shift+7 is /
  const digit = event.key in letters ? undefined : /^(?:Digit|Numpad)(\d)$/.exec(event.code)?.[1]
  if (digit !== undefined) return done(event, () => event.repeat || act(Number(digit)))
  if (event.target.closest('select') && event.key !== 'Escape') return
  if (mode === 'wall' ? onWallKey(event) : onSingleKey(event)) return
  const action = letters[event.key] ?? letters[event.key.toLowerCase()]
  if (action) done(event, () => (event.repeat && action !== undo) || action())
}

function done(event, action) {
  event.preventDefault()
  action()
  return true
}

function onSingleKey(event) {
  if (event.key === 'ArrowLeft') return done(event, () => turn(-1))
  if (event.key === 'ArrowRight') return done(event, () => turn(1))
  return false
}

function onWallKey(event) {
  const page = Math.max(1, Math.floor(byId('wall').clientHeight / (side + CAPTION + GAP))) * columns
  const steps = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -page, PageDown: page,
    Home: -listed.length, End: listed.length}
  if (event.key in steps) return done(event, () => moveFocus(steps[event.key], event.shiftKey))
  const onButton = event.target.closest('button')
  if (event.key === ' ' && !onButton && listed.length) return done(event, () => { toggle(focused); renderWall(true) })
  if (event.key === 'Enter' && !onButton && listed.length) return done(event, switchMode)
  return false
}

function onCellClick(event) {
  const cell = event.target.closest('.cell')
  if (!cell) return
  focused = cell.place
  if (event.shiftKey) selectRange(anchor, focused)
  else toggle(focused)
  renderWall(true)
}

const SWIPE = 50  // pixels
let touched = null

function onTouch(event) {
  if (event.type === 'touchstart') {
    touched = event.touches.length === 1 ? event.touches[0] : null
    return
  }
  if (!touched) return
  const across = event.changedTouches[0].clientX - touched.clientX
  const down = event.changedTouches[0].clientY - touched.clientY
  if (Math.abs(across) > SWIPE && Math.abs(across) > 2 * Math.abs(down)) turn(across < 0 ? 1 : -1)
  touched = null
}

function forget() {
  if (!confirm('Forget all decisions that this browser has for these images?')) return
  for (const file of [...decisions.keys()]) setDecision(file, undefined)
  undoable.length = 0
  byId('keys').close()
  afterChange()
  current = matching[0] ?? -1
  render()
}

function start() {
  document.body.append(app)
  loadDecisions()
  rebuildHistory()
  fillFilters()
  if (stored) byId('storage').textContent = 'Decisions stay in this browser, also when it is closed, until you forget them.'
  byId('start').addEventListener('click', () => { location.hash = '#reviewing' })
  byId('close').addEventListener('click', leave)
  byId('undo').addEventListener('click', undo)
  byId('mode').addEventListener('click', switchMode)
  byId('download').addEventListener('click', download)
  byId('help').addEventListener('click', letters['?'])
  byId('forget').addEventListener('click', forget)
  byId('previous').addEventListener('click', () => turn(-1))
  byId('next').addEventListener('click', () => turn(1))
  byId('search').addEventListener('input', fillPicker)
  byId('search').addEventListener('keydown', event => {
    if (event.key === 'Enter' && !event.isComposing) done(event, () => byId('classes').querySelector('button')?.click())
  })
  byId('cancel').addEventListener('click', () => byId('picker').close())
  byId('grid').addEventListener('click', onCellClick)
  byId('grid').addEventListener('dblclick', switchMode)
  byId('wall').addEventListener('scroll', () => requestAnimationFrame(() => renderWall()), {passive: true})
  for (const type of ['touchstart', 'touchend']) byId('stage').addEventListener(type, onTouch, {passive: true})
  addEventListener('resize', render)
  addEventListener('keydown', onKey)
  addEventListener('hashchange', followAddress)
  addEventListener('beforeunload', event => {
    if (!stored && decisions.size) event.preventDefault()
  })
  addEventListener('storage', event => {  // another window with the same images
    if (!event.key?.startsWith(prefix)) return
    receive(event.key, event.newValue)
    afterChange()
    render()
  })
  matching = [...items.keys()]
  afterChange()
  showNext(true)
  followAddress()
}

start()
})()
