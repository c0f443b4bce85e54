import { hold } from './hold.ts'
import { localStore } from './store.ts'

// A process that leases a place and then waits to be killed: node holder.fixture.ts FOLDER PLACE
const [folder = '', place = ''] = process.argv.slice(2)
await hold(localStore(folder), place, { owner: 'the other run' })
console.log('held')
setInterval(() => {}, 1000)
