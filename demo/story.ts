import assert from 'node:assert/strict'
import type { TimedEvent } from '../hw-tests/harness/console.ts'
import type { Dut } from '../hw-tests/harness/dut.ts'
import type { Timeline } from './timeline.ts'

// The device's side of the demo: what is expected of it, step by step. Any deviation throws.

export interface Ended {
  readonly release: string
  readonly slot: string
  readonly tries: number
  readonly outcome: string
  readonly seconds: number
  /** Bytes that the device says it fetched. */
  readonly fetched: number
}

export class Story {
  readonly #dut: Dut
  readonly #timeline: Timeline
  readonly #bootMs: number

  /** @param bootMs how long any one event may take to come */
  constructor(dut: Dut, timeline: Timeline, bootMs: number) {
    this.#dut = dut
    this.#timeline = timeline
    this.#bootMs = bootMs
  }

  async firstBoot(): Promise<void> {
    await this.#dut.powerOn()
    this.#say('power on')
    const boot = await this.#dut.nextBoot(this.#bootMs)
    this.#say(`boot loader: slot ${boot.slot}, ${boot.boot} (${boot.why})`)
    assert.deepEqual([boot.slot, boot.boot, boot.why], ['a', 'committed', 'ok'])
    const running = await this.#event('running')
    assert.equal(running.fields['release'], '1.1')
    await this.#appRuns('1.0.0')
    await this.#run('echo precious >/var/lib/app/precious && sync')
    this.#say('a file is written below /var')
  }

  /** The published release is found, installed into `slot`, tried and committed. */
  async commits(want: { readonly release: string; readonly version: string; readonly slot: string }): Promise<Ended> {
    const armed = await this.#event('armed')
    const fetched = await this.#fetched()
    this.#say(`installed into slot ${want.slot}, read back, armed; rebooting`)
    const boot = await this.#dut.nextBoot(this.#bootMs)
    this.#say(`boot loader: slot ${boot.slot}, ${boot.boot}`)
    assert.deepEqual([boot.slot, boot.boot], [want.slot, 'try'])
    const committed = await this.#event('committed', ['fell-back', 'panic'])
    assert.deepEqual([committed.fields['slot'], committed.fields['release']], [want.slot, want.release])
    this.#say(`healthy: ${want.release} committed in slot ${want.slot}`)
    await this.#appRuns(want.version)
    assert.equal(await this.#run('cat /var/lib/app/precious'), 'precious\n')
    assert.match(await this.#run('cat /var/lib/app/starts'), /^1\.0\.0$/m)
    assert.match(await this.#run('cat /opt/app/logs/app.log'), /started 1\.0\.0[\s\S]*started 2\.0\.0/)
    assert.equal(await this.#run('test -e /opt/app/legacy.conf && echo there || echo gone'), 'gone\n')
    this.#say('data written before is still there')
    return {
      ...want,
      tries: 1,
      outcome: 'committed',
      seconds: (committed.at - armed.at) / 1000,
      fetched,
    }
  }

  /** The published release is installed and tried, does not make it, and the device is back in `home` by itself. */
  async fallsBack(want: {
    readonly release: string
    readonly slot: string
    readonly home: string
    readonly homeRelease: string
    readonly how: 'health' | 'panic'
  }): Promise<Ended> {
    const armed = await this.#event('armed')
    assert.equal(armed.fields['release'], want.release)
    const fetched = await this.#fetched()
    this.#say(`installed into slot ${want.slot}, armed; rebooting`)
    let tries = 0
    for (;;) {
      const boot = await this.#dut.nextBoot(this.#bootMs)
      this.#say(`boot loader: slot ${boot.slot}, ${boot.boot} (${boot.why})`)
      if (boot.slot === want.home) break
      assert.deepEqual([boot.slot, boot.boot], [want.slot, 'try'])
      tries++
      assert.ok(tries <= 3, 'more than three tries')
      if (want.how === 'panic') {
        const panic = await this.#event('panic')
        this.#say(`kernel: ${panic.line.replace(/^\[.*?\] /, '')}`)
      }
    }
    assert.equal(tries, want.how === 'panic' ? 3 : 1)
    const back = await this.#event('fell-back')
    assert.deepEqual([back.fields['slot'], back.fields['from']], [want.home, want.release])
    this.#say(back.line.slice(back.line.indexOf('fell back')))
    await this.#appRuns('2.0.0')
    // It must not try the same release again: it asks twice more, and says each time what it makes of the answer.
    for (let polls = 0; polls < 2; polls++)
      await this.#event('agent', ['armed', 'boot'], ({ line }) => line.includes(`check blocked ${want.release} `))
    this.#say('polled again, and leaves that release alone')
    return {
      ...want,
      tries,
      outcome: 'fell back',
      seconds: (back.at - armed.at) / 1000,
      fetched,
    }
  }

  async lastLook(): Promise<void> {
    const text = await this.#run('bistable status')
    console.log(text.replace(/^/gm, '    '))
  }

  async #event(
    kind: TimedEvent['kind'],
    fatal: TimedEvent['kind'][] = [],
    where: (event: TimedEvent) => boolean = () => true,
  ): Promise<TimedEvent> {
    return this.#dut.next([kind], { timeoutMs: this.#bootMs, fatal, where })
  }

  /** What the device says behind an install. */
  async #fetched(): Promise<number> {
    const { fields } = await this.#event('agent', ['boot'], ({ line }) => /\bfetched=\d+/.test(line))
    return Number(fields['fetched'])
  }

  /** The application comes up in its own time; what it runs is asked of the device, not of us. */
  async #appRuns(version: string): Promise<void> {
    const command = `for i in $(seq 60);do [ -s /run/app.version ]&&break;sleep 1;done;cat /run/app.version`
    assert.equal(await this.#run(command), `${version}\n`)
    this.#say(`the application runs, version ${version}`)
  }

  async #run(command: string): Promise<string> {
    const { code, output } = await this.#dut.run(command, { timeoutMs: 180_000 })
    assert.equal(code, 0, `${command} ended with ${code}: ${output}`)
    return output
  }

  #say(line: string): void {
    this.#timeline.say('device', line)
  }
}
