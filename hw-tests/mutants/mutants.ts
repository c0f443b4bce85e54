/** Devices broken on purpose, one fault each: what the suites are there to catch. `npm run hil-mutants` proves that they do. */
export interface Mutant {
  readonly name: string
  /** What is wrong with it. */
  readonly fault: string
  /** A file of the product; `from` occurs in it exactly once. */
  readonly file: string
  readonly from: string
  readonly to: string
  /** What of the kit is made with the fault in it: bundles, disks. All else is the good kit's. */
  readonly makes: readonly string[]
  /** The test that is meant to catch it: the file in hw-tests/suites, and the beginning of a name in it. */
  readonly suite: string
  readonly test: string
  /** Found in the assertion that failed: it is caught for this reason, not by chance. */
  readonly because: RegExp
}

/** The agent that runs when the test begins. */
const AGENT = ['base', 'disk-grub.img']

export const MUTANTS: readonly Mutant[] = [
  {
    name: 'counter-stands-still',
    fault: 'GRUB starts the new slot again and again without counting its tries',
    file: 'bootloader/grub.cfg',
    from: '      bs_count_down\n      if [ "$bs_written" = 1 ]; then',
    to: '      set bs_written=1\n      if [ "$bs_written" = 1 ]; then',
    makes: ['disk-grub.img'],
    suite: 'fall-back.hil.ts',
    test: 'a release whose init panics the kernel is given up after three tries',
    because: /4 tries, 3 were wanted/,
  },
  {
    name: 'no-verity',
    fault: 'the initramfs mounts the slot without dm-verity',
    file: 'initramfs/init',
    from: '  echo "0 $((length / 512)) verity 1 $1 $1 4096 4096 $blocks $blocks sha256 $roothash - ${2:+1 $2}"',
    to: '  echo "0 $((length / 512)) linear $1 0"',
    makes: ['next'],
    suite: 'verity.hil.ts',
    test: 'one flipped bit in the armed slot',
    because: /it was committed/,
  },
  {
    name: 'healthy-whatever',
    fault: 'the agent takes every system for healthy',
    file: 'device/health/health.ts',
    from: '  const checks = [...results.values()]\n  return { ok: healthy(checks), checks }',
    to: '  const checks = [...results.values()]\n  return { ok: true, checks }',
    makes: ['unhealthy'],
    suite: 'fall-back.hil.ts',
    test: 'an unhealthy release is given up after one try',
    because: /it was committed/,
  },
  {
    name: 'no-floor',
    fault: 'the agent installs a release older than the committed one',
    file: 'bundle/policy.ts',
    from: 'if (options.allowDowngrade !== true && compareNumbers(number, device.installFloor) < 0)',
    to: 'if (options.allowDowngrade === undefined && compareNumbers(number, device.installFloor) < 0)',
    makes: AGENT,
    suite: 'bad-input.hil.ts',
    test: 'an older release is refused as RELEASE_BELOW_FLOOR',
    because: /expected \{ slot: 'b'.* to match object \{ ok: false/,
  },
  {
    name: 'any-hardware',
    fault: 'the agent installs what is made for another board',
    file: 'bundle/policy.ts',
    from: 'if (!release.hardware.includes(device.hardware))',
    to: 'if (release.hardware.length === 0)',
    makes: AGENT,
    suite: 'bad-input.hil.ts',
    test: 'a bundle for other hardware is refused as RELEASE_WRONG_HARDWARE',
    because: /expected \{ slot: 'b'.* to match object \{ ok: false/,
  },
  {
    name: 'arms-nothing',
    fault: 'the agent says that a slot is armed and writes no boot state',
    file: 'device/agent/work.ts',
    from: '      await boot.write(arm(await core.bootState(), slot, await triesOf(boot)))\n',
    to: '      arm(await core.bootState(), slot, await triesOf(boot))\n',
    makes: AGENT,
    suite: 'install.hil.ts',
    test: 'a release from a stick is installed, tried and committed',
    because: /to match object \{ state: 'armed'/,
  },
  {
    name: 'forgets-what-failed',
    fault: 'the agent installs a release again that has just failed',
    file: 'device/agent/work.ts',
    from: '  if (blocked !== undefined && !options.force) {',
    to: '  if (blocked !== undefined && options.force) {',
    makes: AGENT,
    suite: 'fall-back.hil.ts',
    test: 'an unhealthy release is given up after one try',
    because: /to be 'RELEASE_BLOCKED'/,
  },
]

/** A file's text with the fault in it. @throws TypeError when the place is not found, or more than once */
export function mutated({ name, file, from, to }: Mutant, text: string): string {
  const parts = text.split(from)
  if (parts.length !== 2) throw new TypeError(`mutant ${name}: its place occurs ${parts.length - 1} times in ${file}`)
  return parts.join(to)
}
