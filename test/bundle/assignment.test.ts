import fc from 'fast-check'
import { expect, test } from 'vitest'
import { isBistableError } from '../../base/errors.ts'
import { type AssignmentStatement, encodeAssignment, parseAssignment } from '../../bundle/assignment.ts'
import { MAX_SIGNED_BYTES } from '../../keys/dsse.ts'
import { codeOf, codeOfAsync } from '../codes.ts'
import { ASSIGNMENT, fleetSigned, makeBundle, SHA } from './fixture.ts'

const bytes = (value: unknown) => Buffer.from(JSON.stringify(value))

test('an assignment comes back as it was written', () => {
  const full: AssignmentStatement = {
    ...ASSIGNMENT,
    bundle: { path: 'bundles/demo-0.7.bundle', size: 1234 },
    notBefore: '2026-11-22T00:00:00Z',
    expires: '2026-11-23T00:00:00Z',
    allowDowngrade: true,
  }
  for (const assignment of [ASSIGNMENT, full]) {
    const payload = encodeAssignment(assignment)
    expect(payload.length).toBeLessThan(MAX_SIGNED_BYTES / 4)
    expect(parseAssignment(payload)).toEqual(assignment)
  }
  // A field of a later version does no harm, unless it says that it must be understood.
  expect(parseAssignment(bytes({ ...full, colour: 'red' }))).toEqual(full)
  expect(codeOf(() => parseAssignment(bytes({ ...full, colour: 'red', critical: ['colour'] })))).toBe(
    'ASSIGNMENT_CRITICAL',
  )
})

test('every bad field is refused', () => {
  const cases: Record<string, unknown>[] = [
    { type: 'release' },
    { product: '' },
    { device: '../x' },
    { device: 'a'.repeat(65) },
    { sequence: 0 },
    { sequence: -1 },
    { sequence: '1' },
    { release: 'AB'.repeat(32) },
    { number: { epoch: 0 } },
    { bundle: { path: '../../etc/passwd', size: 1 } },
    { bundle: { path: 'http://evil/x', size: 1 } },
    { bundle: { path: 'x', size: 0 } },
    { issued: '2026-02-30T00:00:00Z' },
    { notBefore: 'soon' },
    { notBefore: '2026-12-01T00:00:00Z', expires: '2026-11-30T00:00:00Z' },
    { expires: undefined },
    { expires: ASSIGNMENT.issued },
    { allowDowngrade: 1 },
    { allowDowngrade: undefined },
  ]
  for (const change of cases)
    expect(
      codeOf(() => parseAssignment(bytes({ ...ASSIGNMENT, ...change }))),
      JSON.stringify(change),
    ).toBe('ASSIGNMENT_INVALID')
  expect(codeOf(() => encodeAssignment({ ...ASSIGNMENT, sequence: 0 }))).toBe('ASSIGNMENT_INVALID')
})

test('no bytes make the parser fail without a code', () => {
  fc.assert(
    fc.property(fc.oneof(fc.uint8Array(), fc.json().map(Buffer.from)), (input) => {
      try {
        parseAssignment(input)
      } catch (error) {
        expect(isBistableError(error)).toBe(true)
      }
    }),
    { numRuns: 300 },
  )
})

test('a bundle carries only an assignment of its own release and product, signed by the fleet role', async () => {
  const made = (assignment: ReturnType<typeof fleetSigned>) => codeOfAsync(() => makeBundle({ assignment }))
  expect(await made(fleetSigned())).toBe('accepted')
  expect(await made(fleetSigned([21], { release: SHA }))).toBe('ASSIGNMENT_RELEASE')
  expect(await made(fleetSigned([21], { number: { epoch: 0, counter: 8 } }))).toBe('ASSIGNMENT_RELEASE')
  expect(await made(fleetSigned([21], { product: 'other' }))).toBe('ASSIGNMENT_RELEASE')
  expect(await made(fleetSigned([11]))).toBe('SIGNATURE_UNKNOWN')
  expect(await made(fleetSigned([]))).toBe('SIGNATURE_THRESHOLD')
})
