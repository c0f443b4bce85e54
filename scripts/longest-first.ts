import { existsSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { BaseSequencer, type TestSpecification } from 'vitest/node'

const root = resolve(import.meta.dirname, '..')

/**
 * The test files that take longest, the longest first. On a new machine vitest knows no times and would start the largest file
 * first: a long one that comes last then runs alone while a processor idles.
 */
const LONG = [
  'hw-tests/suites/fall-back.hil.ts',
  'hw-tests/suites/install.hil.ts',
  'hw-tests/suites/power-cut.hil.ts',
  'hw-tests/suites/bad-input.hil.ts',
  'test/initramfs/watchdog.hil.ts',
  'test/initramfs/boot.hil.ts',
  'hw-tests/suites/verity.hil.ts',
  'hw-tests/suites/rotation.hil.ts',
  'test/bootloader/sdboot.hil.ts',
  'hw-tests/suites/medium.hil.ts',
  'test/device-agent/link.test.ts',
  'test/device-agent/mqtt-doors.test.ts',
  'test/mqtt/mosquitto.test.ts',
  'test/delta/exact.test.ts',
  'test/squashfs/writer.test.ts',
  'test/powercut/campaign.test.ts',
  'test/doors/doors.test.ts',
  'test/bootloader/uboot-script.test.ts',
  'test/initramfs/state.test.ts',
  'hw-tests/harness/run.test.ts',
  'hw-tests/cli/doctor.test.ts',
  'hw-tests/harness/shell.test.ts',
  'test/device-agent/cli.test.ts',
  'test/device-install/install.test.ts',
  'test/bundle/flip.test.ts',
  'test/device-agent/story.test.ts',
  'test/device-repair/repair.test.ts',
  'test/keys/page.test.ts',
]

/** The order in which vitest starts files: those of `LONG`, then the others as it would. */
export class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const gone = LONG.find((name) => !existsSync(join(root, name)))
    if (gone !== undefined) throw new Error(`scripts/longest-first.ts names ${gone}, which is not there`)
    const places = new Map(LONG.map((name, n) => [join(root, name), n]))
    const place = ({ moduleId }: TestSpecification): number => places.get(moduleId) ?? LONG.length
    return (await super.sort(files)).sort((a, b) => place(a) - place(b))
  }
}
