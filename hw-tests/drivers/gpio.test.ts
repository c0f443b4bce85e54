import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { openBootMode } from './boot-mode.ts'
import { gpioLine } from './gpio.ts'
import { openPower } from './power.ts'
import * as standIns from './stand-ins.ts'
import { toolsFolder } from './tools-folder.ts'

const { bin, file, log } = toolsFolder('gpio')

/** Undefined when no such process runs: a child that nobody waited for has ended, too. */
const startOf = (pid: number) => {
  const path = `/proc/${pid}/stat`
  const text = existsSync(path) ? readFileSync(path, 'utf8') : ' Z'
  return / Z/.test(text) ? undefined : text
}

// Holds its line like gpioset 2.x: one at a time, until it is told to end.
const GPIOSET = `
[ "$1" = --version ] && { echo "gpioset (libgpiod) v2.2.1"; exit; }
[ "$1" = --banner ] || exit 2
shift
mkdir "$STATE.$2.held" 2>/dev/null || { echo "gpioset: unable to request lines on chip '$2': Device or resource busy" >&2; exit 1; }
echo "$3" >"$STATE"
echo "Setting line '$3'..."
trap 'rmdir "$STATE.$2.held"; echo none >"$STATE"; exit 0' TERM
while :; do sleep 0.05; done`

describe('GPIO lines', () => {
  it('are held as long as they are wanted, one process at a time, and let go at the end', async () => {
    await standIns.program(bin, 'gpioset', GPIOSET)
    const power = openPower({ driver: 'gpio', chip: 'gpiochip0', line: 17, on: 0 })
    expect(await power.state()).toBeUndefined()
    await power.on()
    expect([file('gpioset.state')?.trim(), await power.state()]).toEqual(['17=0', true])
    await power.off()
    expect([file('gpioset.state')?.trim(), await power.state()]).toEqual(['17=1', false])
    const other = gpioLine('gpiochip0', 17)
    await expect(other.set(1)).rejects.toThrow(/does not hold gpiochip0 line 17.*busy/s)
    await power.close()
    expect(file('gpioset.state')?.trim()).toBe('none')
  })

  it("whose holder was killed are nobody's, and can be had again; a run that is killed lets go of its own", async () => {
    const HOLDS = '[ "$1" = --version ] && { echo v2.2.1; exit; }; echo $$ >"$STATE.pid"; echo; exec sleep 1000'
    await standIns.program(bin, 'gpioset', HOLDS)
    const line = gpioLine('gpiochip2', 5)
    await line.set(1)
    const holder = () => Number(file('gpioset.state.pid'))
    process.kill(holder(), 'SIGKILL')
    await expect.poll(() => line.level()).toBeUndefined()
    await line.set(0)
    await line.release()
    const run = `const { gpioLine } = await import(${JSON.stringify(join(import.meta.dirname, 'gpio.ts'))})
await gpioLine('gpiochip2', 5).set(1); console.log('held'); setInterval(() => {}, 1000)`
    const child = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', run], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    await once(child.stdout, 'data')
    const its = holder()
    process.kill(its, 0)
    child.kill('SIGKILL')
    await expect.poll(() => startOf(its)).toBeUndefined()
  })

  it('held by gpioset 1.x are had when it has not refused after a second', async () => {
    const OLD = `[ "$1" = --version ] && { echo v1.6.3; exit; }; [ "$1" = --mode=signal ] || exit 2
[ -e "$STATE.stuck" ] && { sleep 0.4; echo busy >&2; exit 1; }; exec sleep 1000`
    await standIns.program(bin, 'gpioset', OLD)
    const line = gpioLine('gpiochip3', 1)
    await line.set(1)
    expect(line.level()).toBe(1)
    writeFileSync(join(bin, 'gpioset.state.stuck'), '')
    await expect(line.set(0)).rejects.toThrow(/does not hold gpiochip3 line 1: ended with 1 busy/)
    expect(line.level()).toBeUndefined()
  })

  it('straps choose what the board boots from', async () => {
    await standIns.program(bin, 'gpioset', GPIOSET.replaceAll('$2.held', '$3.held'))
    const modes = { sd: [1, 0], emmc: [0, 1], odd: [1] } as const
    const straps = openBootMode({ driver: 'gpio', chip: 'gpiochip1', lines: [3, 4], modes })
    await straps.set('emmc')
    expect(log('gpioset').filter((line) => line.includes('gpiochip1'))).toEqual([
      '--banner --chip gpiochip1 3=0',
      '--banner --chip gpiochip1 4=1',
    ])
    await expect(straps.set('odd')).rejects.toThrow(/1 levels for 2 lines/)
    await expect(straps.set('nand')).rejects.toThrow(/no boot mode nand; there are: sd, emmc, odd/)
    await straps.close()
    const mode = openBootMode({ driver: 'command', modes: { sd: ['gpioset', '--version'] } })
    await mode.set('sd')
    expect(log('gpioset').at(-1)).toBe('--version')
  })
})
