/**
 * `import { expect, hil } from 'bistable/hil'`: the harness, for boards of one's own. See docs/hil.md and hw-tests/examples.
 *
 * @packageDocumentation
 */

export { openBootMode } from './drivers/boot-mode.ts'
export { type ConsoleWiring, openConsolePort } from './drivers/console.ts'
export { openPower, type Power, type PowerWiring } from './drivers/power.ts'
export { apcOutlet, poePort } from './drivers/power-snmp.ts'
export { openStorage, type Storage, type StorageWiring } from './drivers/storage.ts'
export { type BootEvent, type BootState, readLine } from './harness/boot-states.ts'
export { TestBroker } from './harness/broker.ts'
export { Console, type TimedEvent } from './harness/console.ts'
export { Dut, type DutOptions } from './harness/dut.ts'
export { type Begin, expect, hil, type OwnBench, type OwnDevice, type OwnDut, seconds } from './harness/hil.ts'
export { DutError, LabError } from './harness/lab-error.ts'
export type { Machine, Modem } from './harness/machine.ts'
export { type DiskFault, type QemuOptions, startQemu } from './harness/qemu.ts'
export { campaign, seeded } from './harness/random.ts'
export { type Offer, TestServer } from './harness/server.ts'
export { Shell } from './harness/shell.ts'
export type { Stick } from './harness/stick.ts'
export { beagleBone, raspberryPi4, raspberryPi5, x86Box } from './places/boards.ts'
export type { BoardPlace, Feature, QemuPlace } from './places/index.ts'
