import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { humanBytes } from '../base/bytes.ts'
import { type Story, stories } from './herd-model.ts'

// npm run herd [-- DEVICES]: what a fleet does to its servers after they were away, and the plot in docs/herd.svg.

const devices = Number(process.argv[2] ?? 10_000)
const told = stories(devices)
console.log(`${devices} devices`)
for (const { name, peak, limit, bytes, done } of told) {
  const most = bytes === 0 ? '' : `, ${humanBytes(peak * bytes)} per second`
  const all = done === undefined ? '' : `; the last is back after ${done} s`
  console.log(`  ${name}: peak ${peak} per second (limit ${Math.round(limit)})${most}${all}`)
}
if (devices === 10_000) writeFileSync(join(import.meta.dirname, '../docs/herd.svg'), plot(told.slice(0, 2)))
process.exitCode = told.every(({ peak, limit }) => peak <= limit) ? 0 : 1

function plot(shown: readonly Story[]): string {
  const [width, height, seconds] = [720, 240, 180]
  const most = Math.max(...shown.map(({ limit }) => limit))
  const x = (second: number) => 50 + (second / seconds) * (width - 70)
  const y = (value: number) => height - 30 - (value / most) * (height - 60)
  const colours = ['#1b6ca8', '#c2571a']
  const lines = shown.map(({ tries }, i) => {
    const points = tries.slice(0, seconds).map((value, second) => `${x(second).toFixed(1)},${y(value).toFixed(1)}`)
    return `<polyline fill="none" stroke="${colours[i]}" points="${points.join(' ')}"/>`
  })
  const names = shown.map(({ name }, i) => `<text x="200" y="${50 + i * 16}" fill="${colours[i]}">${name}</text>`)
  const marks = [0, 30, 60, 90, 120, 150, 180].map(
    (s) => `<text x="${x(s)}" y="${height - 12}" text-anchor="middle">${s} s</text>`,
  )
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="12">`,
    `<rect width="${width}" height="${height}" fill="#fff"/>`,
    `<text x="50" y="16">connections tried per second, ${devices} devices, after every connection broke at 0 s</text>`,
    `<line x1="50" x2="${width - 20}" y1="${y(most)}" y2="${y(most)}" stroke="#888" stroke-dasharray="4"/>`,
    `<text x="46" y="${y(most) + 4}" text-anchor="end">${most}</text><text x="46" y="${y(0) + 4}" text-anchor="end">0</text>`,
    ...lines,
    ...names,
    ...marks,
    '</svg>\n',
  ].join('\n')
}
