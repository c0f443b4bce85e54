import { describe, expect, it } from 'vitest'
import { scratch } from '../bundle/tools.ts'
import { Device } from './device.ts'
import { DOORS, stickOf } from './doors.ts'
import { forge } from './forge.ts'
import { type Hostile, hostileBundles } from './hostile-bundles.ts'
import { attempt, refused } from './refused.ts'

// One rule set for every door: the same lies get the same codes, and whatever was tried, the device stays as it was.

let made: Promise<readonly Hostile[]> | undefined

describe('the same bundles through every door', () => {
  it.each(DOORS.map((door) => [door.name, door] as const))(
    'A3 A5 A9 A10 A16 A24 %s: every hostile bundle gets its code, and nothing of it boots',
    async (_, door) => {
      const folder = scratch()
      const take = door.take ?? ((on: Device, from: string) => on.install(from))
      const device = await Device.make(folder, { sticks: stickOf(folder) })
      const start = await device.fingerprint()
      made ??= hostileBundles()
      for (const { what, bytes, code, payload } of await made) {
        const from = await door.offer(folder, bytes)
        refused(`${what}, ${door.name}`, await attempt(() => take(device, from)), code)
        expect(device.core.body.state.name).toBe('idle')
        if (payload === true) {
          // Found at the latest while it is written: then the slot is given up, never armed.
          expect(await device.bootState(), what).toMatchObject({ primary: 'a', trial: undefined })
          await device.reset()
        } else expect(await device.fingerprint(), what).toBe(start)
      }
      // What is honest goes through the same door.
      const honest = await door.offer(folder, await forge())
      expect(await attempt(() => take(device, honest))).toBe('accepted')
      expect(await device.bootState()).toMatchObject({ primary: 'a', trial: 'b', left: 3 })
    },
  )
})
